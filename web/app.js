// The page: pictures in, faces out. The networks run in the worker engine.js.

import { announce, drawFaces, drawPicture, showFaces, showNetwork, smooth } from "./show.js";
import { openCamera, readPicture } from "./sources.js";

const WIDEST = 4096; // pixels of a photo's longer side; what is larger is scaled down to it

const $ = (id) => document.getElementById(id);
const [file, button, video, view, stage] = ["file", "camera", "video", "view", "stage"].map($);
let engine, network;
let camera = null; // the stream, while there is one
let shown = 0; // counts what was asked to be shown, so that an old answer is not

start().catch((error) => fail(error.message));

async function start() {
  $("unstarted").remove();
  takeFiles();
  requireWebAssembly();
  network = await readNetwork();
  showNetwork(network);
  $("threads").hidden = self.crossOriginIsolated;
  engine = await startEngine();
  $("loading").hidden = true;
  file.disabled = button.disabled = false;
  announce("Ready for a photo.");
}

/** Takes pictures that are chosen, dropped or pasted, and the camera's button. */
function takeFiles() {
  file.onchange = () => file.files[0] && showFile(file.files[0]);
  button.onclick = () => (camera ? stopCamera() : startCamera());
  document.ondragover = (event) => {
    event.preventDefault();
    stage.classList.add("over");
  };
  document.ondragleave = () => stage.classList.remove("over");
  document.ondrop = (event) => {
    event.preventDefault();
    stage.classList.remove("over");
    showFile(event.dataTransfer.files[0]);
  };
  document.onpaste = (event) => showFile(event.clipboardData.files[0]);
}

/** Throws a sentence where WebAssembly or its SIMD instructions are missing. */
function requireWebAssembly() {
  const simd = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8];
  const module = new Uint8Array([...simd, 0, 65, 0, 253, 15, 253, 98, 11]); // an i8x16.splat
  if (self.WebAssembly?.validate(module)) return;
  throw new Error(
    "This browser cannot run the networks: it has no WebAssembly with SIMD, or it is switched " +
      "off. Chrome and Edge 91, Firefox 89, Safari 16.4 and what came after them have it.",
  );
}

async function readNetwork() {
  const address = new URL("network.json", import.meta.url).href;
  const response = await fetch(address).catch((error) => ({ status: error.message }));
  if (response.ok) return response.json();
  throw new Error(`${address} could not be loaded: ${response.status}`);
}

/** Returns look(picture), which resolves to {faces, ms}. */
function startEngine() {
  const address = new URL("engine.js", import.meta.url).href;
  const worker = new Worker(address, { type: "module" });
  const cores = navigator.hardwareConcurrency || 1;
  let loaded = 0;
  let answer; // of the one question that is open
  const ask = (message, transfer = []) =>
    new Promise((resolve, reject) => {
      answer = { resolve, reject };
      worker.postMessage(message, transfer);
    });
  worker.onerror = () =>
    answer.reject(new Error(`${address}, or a file that it needs, could not be loaded or run.`));
  worker.onmessage = ({ data }) => {
    if (data.kind === "progress") $("progress").value = (loaded += data.bytes) / network.bytes;
    else if (data.kind === "failed") answer.reject(new Error(data.reason));
    else answer.resolve(data);
  };
  let turn = ask({ kind: "load", threads: self.crossOriginIsolated ? Math.min(4, cores) : 1 });
  const look = (picture) => {
    const next = () => ask({ kind: "look", picture }, [picture.data.buffer]);
    return (turn = turn.then(next, next));
  };
  return turn.then(() => look);
}

async function showFile(chosen) {
  if (!engine) return; // still loading, or that has failed
  const mine = ++shown;
  stopCamera();
  file.value = ""; // so that the same one can be chosen again
  try {
    const picture = await readPicture(chosen, WIDEST);
    if (mine !== shown) return;
    announce("Looking for faces …");
    drawPicture(view, picture.canvas);
    const { faces, ms } = await engine(picture.pixels);
    if (mine !== shown) return;
    drawFaces(view, faces, network.classes, picture.canvas.width);
    showFaces(faces, network.classes, ms);
    announce(sentence(faces));
  } catch (error) {
    if (mine === shown) fail(error.message);
  }
}

async function startCamera() {
  const mine = ++shown;
  const failIfShown = (error) => mine === shown && fail(error.message);
  button.disabled = true;
  try {
    camera = await openCamera(video);
    if (mine !== shown) return stopCamera(); // a photo was chosen in the meantime
    announce("Looking for faces …");
    camera.getVideoTracks()[0].onended = () =>
      failIfShown(new Error("The camera stopped sending pictures."));
    button.textContent = "Stop camera";
    watch(mine).catch(failIfShown);
  } catch (error) {
    failIfShown(error);
  } finally {
    button.disabled = false;
  }
}

function stopCamera() {
  camera?.getTracks().forEach((track) => track.stop());
  camera = null;
  button.textContent = "Start camera";
}

/** Shows the camera's frames, as fast as they are answered, until something else is shown. */
async function watch(mine) {
  const frame = document.createElement("canvas");
  const context = frame.getContext("2d", { willReadFrequently: true });
  let [before, then, spoken] = [[], performance.now(), 0];
  while (camera && mine === shown) {
    const { videoWidth: width, videoHeight: height } = video; // change when a phone is turned
    if (frame.width !== width || frame.height !== height) Object.assign(frame, { width, height });
    context.drawImage(video, 0, 0);
    const answer = await engine(context.getImageData(0, 0, width, height));
    if (!camera || mine !== shown) return;
    const now = performance.now();
    const mirrored = answer.faces.reverse(); // so that they still count from the left
    const faces = smooth(mirrored, before, (now - then) / 1000);
    [before, then] = [faces, now];
    drawPicture(view, frame, true);
    drawFaces(view, faces, network.classes, width, true);
    showFaces(faces, network.classes, answer.ms, true);
    if (now - spoken > 3000) {
      announce(sentence(faces)); // not so often that a screen reader never ends
      spoken = now;
    }
    await new Promise(requestAnimationFrame);
  }
}

function sentence(faces) {
  if (!faces.length) return "No face found: none that is wider than a fortieth of the picture.";
  const labels = faces.map((face) => network.classes[argmax(face.probabilities)]);
  if (faces.length === 1) return `One face: ${labels[0]}.`;
  return `${faces.length} faces, from the left: ${labels.join(", ")}.`;
}

const argmax = (values) => values.indexOf(Math.max(...values));

function fail(reason) {
  stopCamera();
  $("loading").hidden = true;
  showFaces([], []);
  view.hidden = true;
  $("empty").hidden = false;
  announce(reason, true);
}
