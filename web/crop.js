// From a picture to the network's input. The same steps in the same arithmetic as
// fer_jax/apps/crop.py, which explains them; tests/web/fixtures.json holds both to the same values.

export const SIDE = 48; // pixels of the network's input
const FACE_POINTS = [[15.1, 18.3], [32.9, 18.3], [24.0, 28.7], [16.7, 36.7], [31.3, 36.7]];
const BOX_HEIGHT = 50.7;
const HALF = 0.5 + 1e-9;

/** Grey values (ITU-R BT.601) of RGBA bytes. */
export function luminance(rgba) {
  const grey = new Uint8Array(rgba.length / 4);
  for (let i = 0, j = 0; i < grey.length; i++, j += 4) {
    grey[i] = (19595 * rgba[j] + 38470 * rgba[j + 1] + 7471 * rgba[j + 2] + 32768) >> 16;
  }
  return grey;
}

/** The square {x, y, side, cos, sin} of a face: box [left, top, width, height], five [x, y]. */
export function faceSquare(box, points) {
  const [left, top, width, height] = box;
  const middle = [0, 1].map((axis) => FACE_POINTS.reduce((sum, p) => sum + p[axis], 0) / 5);
  let along = 0;
  let across = 0;
  FACE_POINTS.forEach((point, i) => {
    const x = point[0] - middle[0];
    const y = point[1] - middle[1];
    along += x * points[i][0] + y * points[i][1];
    across += x * points[i][1] - y * points[i][0];
  });
  const length = Math.sqrt(along * along + across * across);
  const [cos, sin] = length > 1e-6 ? [along / length, across / length] : [1, 0];
  return { x: left + width / 2, y: top + height / 2, side: (SIDE / BOX_HEIGHT) * height, cos, sin };
}

/** A square of a grey picture {values, width, height} as 48x48 bytes. */
export function crop(picture, square) {
  const k = Math.max(1, Math.ceil(square.side / SIDE - 1e-9));
  const points = SIDE * k;
  const offset = (i) => (i + 0.5 - points / 2) * (square.side / points);
  const image = new Uint8Array(SIDE * SIDE);
  for (let row = 0; row < SIDE; row++) {
    for (let column = 0; column < SIDE; column++) {
      let sum = 0;
      for (let i = row * k; i < (row + 1) * k; i++) {
        const down = offset(i);
        for (let j = column * k; j < (column + 1) * k; j++) {
          const right = offset(j);
          const x = square.x + (right * square.cos - down * square.sin);
          const y = square.y + (right * square.sin + down * square.cos);
          sum += interpolate(picture, x, y);
        }
      }
      image[row * SIDE + column] = Math.floor(sum / (k * k) + HALF);
    }
  }
  return image;
}

function interpolate({ values, width, height }, x, y) {
  const left = Math.floor(x - 0.5);
  const top = Math.floor(y - 0.5);
  const right = x - 0.5 - left;
  const lower = y - 0.5 - top;
  const [x0, x1] = [clamp(left, width), clamp(left + 1, width)];
  const [y0, y1] = [clamp(top, height) * width, clamp(top + 1, height) * width];
  const above = values[y0 + x0] * (1 - right) + values[y0 + x1] * right;
  const below = values[y1 + x0] * (1 - right) + values[y1 + x1] * right;
  return above * (1 - lower) + below * lower;
}

/** The index of 0 ... length - 1 that is nearest to one. */
export function clamp(index, length) {
  return index < 0 ? 0 : index >= length ? length - 1 : index;
}
