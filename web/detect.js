// Finds faces with YuNet, twice each, as fer_jax/apps/detect.py explains. What OpenCV does around
// the network there is done here: scaling (its INTER_AREA and INTER_CUBIC), padding, decoding of
// the outputs and suppression of overlapping boxes (its FaceDetectorYN).

import { clamp } from "./crop.js";

const LONGEST_SIDE = 640;
const PATCH_SIDE = 320;
const FACE_WIDTH = 200;
const MIN_CANDIDATE_SCORE = 0.6;
const MIN_SCORE = 0.7;
const MAX_OVERLAP = 0.3;
const STRIDES = [8, 16, 32];

/**
 * Returns the faces {box, points, score} of a picture {data: RGBA, width, height}, left to right.
 *
 * `run(pixels, width, height)` runs YuNet on planar float BGR; it resolves to arrays by name.
 */
export async function detect(picture, run) {
  const found = [];
  for (const box of await candidates(picture, run)) {
    const face = await lookAgain(picture, box, run);
    if (face) found.push(face);
  }
  found.sort((a, b) => b.score - a.score);
  const kept = [];
  for (const face of found) {
    if (kept.every((other) => overlap(face.box, other.box) <= MAX_OVERLAP)) kept.push(face);
  }
  return kept.sort((a, b) => a.box[0] - b.box[0] || a.box[1] - b.box[1]);
}

async function candidates(picture, run) {
  const { width, height } = picture;
  const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
  const [w, h] = [width, height].map((side) => Math.max(1, roundToEven(side * scale)));
  const [paddedW, paddedH] = [w, h].map((side) => Math.ceil(side / 32) * 32);
  const small = resize(picture, areaTaps(width, w), areaTaps(height, h), paddedW, paddedH);
  const rows = decode(await run(small, paddedW, paddedH), paddedW, paddedH, MIN_CANDIDATE_SCORE);
  return rows.map(({ box: [x, y, bw, bh] }) => {
    return [(x * width) / w, (y * height) / h, (bw * width) / w, (bh * height) / h];
  });
}

async function lookAgain(picture, box, run) {
  const side = Math.max(8, roundToEven((box[2] * PATCH_SIDE) / FACE_WIDTH));
  const corner = [0, 1].map((i) => Math.floor(box[i] + box[i + 2] / 2 - side / 2));
  const taps = (side > PATCH_SIDE ? areaTaps : cubicTaps)(side, PATCH_SIDE);
  const [across, down] = [picture.width, picture.height].map((length, axis) =>
    taps.map((tap) => tap.map(([i, weight]) => [clamp(corner[axis] + i, length), weight])),
  );
  const patch = resize(picture, across, down, PATCH_SIDE, PATCH_SIDE);
  const outputs = await run(patch, PATCH_SIDE, PATCH_SIDE);
  const scale = side / PATCH_SIDE;
  let best = null;
  for (const row of decode(outputs, PATCH_SIDE, PATCH_SIDE, MIN_SCORE)) {
    const face = {
      box: row.box.map((value, i) => value * scale + (i < 2 ? corner[i] : 0)),
      points: row.points.map((point) => point.map((value, i) => value * scale + corner[i])),
      score: row.score,
    };
    if (overlap(face.box, box) <= MAX_OVERLAP) continue; // a neighbour, found by itself
    if (!best || face.score > best.score) best = face;
  }
  return best;
}

/**
 * Scales a picture's RGB to planar float BGR, whole grey levels, zero right of and below it.
 *
 * For each column and row of the result, the taps are the [index, weight] pairs it is summed of.
 */
export function resize({ data, width }, across, down, paddedW, paddedH) {
  const pixels = new Float32Array(3 * paddedW * paddedH);
  const rows = new Map(); // of the picture, already scaled across; those that will be used again
  const scaledRow = (y) => {
    const row = new Float64Array(3 * across.length);
    across.forEach((taps, x) => {
      for (const [i, weight] of taps) {
        const at = 4 * (y * width + i);
        row[3 * x] += weight * data[at + 2];
        row[3 * x + 1] += weight * data[at + 1];
        row[3 * x + 2] += weight * data[at];
      }
    });
    return row;
  };
  const sum = new Float64Array(3 * across.length);
  down.forEach((taps, y) => {
    sum.fill(0);
    const needed = new Set(taps.map(([i]) => i));
    for (const i of rows.keys()) if (!needed.has(i)) rows.delete(i);
    for (const [i, weight] of taps) {
      if (!rows.has(i)) rows.set(i, scaledRow(i));
      const row = rows.get(i);
      for (let j = 0; j < sum.length; j++) sum[j] += weight * row[j];
    }
    for (let x = 0; x < across.length; x++) {
      for (let channel = 0; channel < 3; channel++) {
        const value = Math.min(255, Math.max(0, Math.round(sum[3 * x + channel])));
        pixels[(channel * paddedH + y) * paddedW + x] = value;
      }
    }
  });
  return pixels;
}

/** Each of `to` cells is the mean of what it covers of `from` pixels. */
export function areaTaps(from, to) {
  const scale = from / to;
  return Array.from({ length: to }, (_, cell) => {
    const [start, end] = [cell * scale, Math.min((cell + 1) * scale, from)];
    const taps = [];
    for (let i = Math.floor(start + 1e-3); i < end - 1e-3; i++) {
      taps.push([i, (Math.min(i + 1, end) - Math.max(i, start)) / (end - start)]);
    }
    return taps;
  });
}

/** Cubic convolution with a = -0.75; border pixels go on outside. */
export function cubicTaps(from, to) {
  const a = -0.75;
  const near = (t) => ((a + 2) * t - (a + 3)) * t * t + 1;
  const far = (t) => ((a * t - 5 * a) * t + 8 * a) * t - 4 * a;
  return Array.from({ length: to }, (_, x) => {
    const at = ((x + 0.5) * from) / to - 0.5;
    const i = Math.floor(at);
    const t = at - i;
    const weights = [far(t + 1), near(t), near(1 - t), far(2 - t)];
    return weights.map((weight, j) => [clamp(i - 1 + j, from), weight]);
  });
}

/** YuNet's outputs as {box, points, score}, the surest first, without those that overlap. */
function decode(outputs, width, height, minScore) {
  const rows = [];
  for (const stride of STRIDES) {
    const output = (name) => outputs[`${name}_${stride}`];
    const [cls, obj, bbox, kps] = ["cls", "obj", "bbox", "kps"].map(output);
    const columns = width / stride;
    for (let i = 0; i < columns * (height / stride); i++) {
      const score = Math.sqrt(unit(cls[i]) * unit(obj[i]));
      if (score <= minScore) continue;
      const cell = [i % columns, Math.floor(i / columns)];
      const [x, y] = cell.map((c, axis) => (c + bbox[4 * i + axis]) * stride);
      const [w, h] = [2, 3].map((j) => Math.exp(bbox[4 * i + j]) * stride);
      const points = [0, 1, 2, 3, 4].map((p) =>
        cell.map((c, axis) => (c + kps[10 * i + 2 * p + axis]) * stride),
      );
      rows.push({ box: [x - w / 2, y - h / 2, w, h], points, score });
    }
  }
  rows.sort((a, b) => b.score - a.score);
  const whole = (row) => row.box.map(Math.trunc); // what OpenCV compares
  const kept = [];
  for (const row of rows) {
    if (kept.every((other) => overlap(whole(row), whole(other)) <= MAX_OVERLAP)) kept.push(row);
  }
  return kept;
}

/** Intersection over union of two boxes. */
export function overlap(a, b) {
  const end = (i) => Math.min(a[i] + a[i + 2], b[i] + b[i + 2]);
  const side = (i) => Math.max(0, end(i) - Math.max(a[i], b[i]));
  const common = side(0) * side(1);
  return common / (a[2] * a[3] + b[2] * b[3] - common);
}

const unit = (value) => Math.min(1, Math.max(0, value));

/** Rounds as Python does: a half to the even neighbour. */
function roundToEven(value) {
  const down = Math.floor(value);
  if (value - down !== 0.5) return Math.round(value);
  return down % 2 ? down + 1 : down;
}
