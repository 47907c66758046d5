// The worker: loads ONNX Runtime and both networks, then answers each picture with its faces.
//
// Takes {kind: "load", threads} once, then {kind: "look", picture} any number of times.
// Answers {kind: "progress", bytes}, {kind: "ready"}, {kind: "faces", faces, ms: {find, face}}
// or {kind: "failed", reason}; milliseconds to find them, and from each cut to its probabilities.

import { SIDE, crop, faceSquare, luminance } from "./crop.js";
import { detect } from "./detect.js";

let ort, detector, classifier;

self.onmessage = async ({ data }) => {
  try {
    postMessage(data.kind === "load" ? await load(data) : await look(data.picture));
  } catch (error) {
    postMessage({ kind: "failed", reason: error.message });
  }
};

async function load({ threads }) {
  const names = ["ort/ort-wasm-simd-threaded.wasm", "yunet.onnx", "network.onnx"];
  const files = Promise.all(names.map(read));
  const [module, [wasm, ...models]] = await Promise.all([imported("ort/ort.wasm.min.mjs"), files]);
  ort = module;
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = threads;
  detector = await session(names[1], models[0]);
  classifier = await session(names[2], models[1]);
  await classify([new Uint8Array(SIDE * SIDE)]); // memory is taken now
  return { kind: "ready" };
}

async function look(picture) {
  const start = performance.now();
  const grey = { values: luminance(picture.data), width: picture.width, height: picture.height };
  const faces = await detect(picture, runDetector);
  const found = performance.now();
  for (const face of faces) face.image = crop(grey, faceSquare(face.box, face.points));
  if (faces.length) {
    const rows = await classify(faces.map((face) => face.image));
    faces.forEach((face, i) => (face.probabilities = rows[i]));
  }
  return { kind: "faces", faces, ms: { find: found - start, face: (performance.now() - found) / faces.length } };
}

async function runDetector(pixels, width, height) {
  const input = new ort.Tensor("float32", pixels, [1, 3, height, width]);
  const outputs = await detector.run({ [detector.inputNames[0]]: input });
  return Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, tensor.data]));
}

/** Returns the probabilities of each 48x48 image, as plain arrays. */
async function classify(images) {
  const pixels = new Uint8Array(images.length * SIDE * SIDE);
  images.forEach((image, i) => pixels.set(image, i * SIDE * SIDE));
  const input = new ort.Tensor("uint8", pixels, [images.length, SIDE, SIDE]);
  const { probabilities } = await classifier.run({ [classifier.inputNames[0]]: input });
  const classes = probabilities.dims[1];
  return images.map((_, i) => [...probabilities.data.slice(i * classes, (i + 1) * classes)]);
}

async function read(name) {
  const address = new URL(name, import.meta.url).href;
  const response = await fetch(address).catch((error) => {
    throw new Error(`${address} could not be loaded: ${error.message}`);
  });
  if (!response.ok) throw new Error(`${address} could not be loaded: status ${response.status}`);
  const chunks = [];
  for (let reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return new Uint8Array(await new Blob(chunks).arrayBuffer());
    chunks.push(value);
    postMessage({ kind: "progress", bytes: value.length });
  }
}

async function session(name, bytes) {
  try {
    return await ort.InferenceSession.create(bytes);
  } catch (error) {
    throw new Error(`${new URL(name, import.meta.url).href} cannot be used: ${error.message}`);
  }
}

async function imported(name) {
  const address = new URL(name, import.meta.url).href;
  try {
    return await import(address);
  } catch (error) {
    throw new Error(`${address} could not be loaded: ${error.message}`);
  }
}
