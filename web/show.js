// What the page shows: the picture with its faces, their probabilities, the network's card.

import { overlap } from "./detect.js";

const LONGEST = 1280; // pixels of the canvas that is looked at

const $ = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(100 * share)} %`;

/** Says a sentence, to screen readers too. */
export function announce(sentence, failed = false) {
  const said = $("said");
  said.classList.toggle("failed", failed);
  if (said.textContent !== sentence) said.textContent = sentence;
}

/** Draws a picture, mirrored as one sees oneself if it is one's own camera's. */
export function drawPicture(view, picture, mirrored = false) {
  const scale = Math.min(1, LONGEST / Math.max(picture.width, picture.height));
  const [width, height] = [picture.width, picture.height].map((side) =>
    Math.max(1, Math.round(side * scale)),
  );
  if (view.width !== width) view.width = width;
  if (view.height !== height) view.height = height;
  const context = view.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.setTransform(mirrored ? -1 : 1, 0, 0, 1, mirrored ? width : 0, 0);
  context.drawImage(picture, 0, 0, width, height);
  context.setTransform(1, 0, 0, 1, 0, 0);
  view.hidden = false;
  $("empty").hidden = true;
}

/** Draws boxes with number and label over the picture, which was `width` pixels wide. */
export function drawFaces(view, faces, classes, width, mirrored = false) {
  const context = view.getContext("2d");
  const scale = view.width / width;
  const unit = view.width / Math.max(200, view.getBoundingClientRect().width); // a CSS pixel
  context.font = `600 ${14 * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.lineWidth = 2.5 * unit;
  faces.forEach((face, i) => {
    const [left, y, w, h] = face.box.map((value) => value * scale);
    const x = mirrored ? view.width - left - w : left;
    const sizeOf = (text) => context.measureText(text).width + 12 * unit;
    let text = `${i + 1}  ${classes[top(face.probabilities)]}`;
    if (sizeOf(text) > 1.6 * w) text = `${i + 1}`; // so that it hides no neighbour
    const tag = sizeOf(text);
    const tagX = Math.max(0, Math.min(x, view.width - tag));
    const tagY = Math.max(0, y - 22 * unit);
    context.strokeStyle = context.fillStyle = "#1f5fd0";
    context.strokeRect(x, y, w, h);
    context.fillRect(tagX - context.lineWidth / 2, tagY, tag, 22 * unit);
    context.fillStyle = "white";
    context.fillText(text, tagX + 6 * unit, tagY + 11.5 * unit);
  });
}

/**
 * Averages the probabilities of each face of a frame with those of the same face `seconds` before,
 * the older the less: those of half a second ago count 1/e. So the bars of a camera can be read.
 */
export function smooth(faces, before, seconds) {
  const kept = Math.exp(-seconds / 0.5);
  return faces.map((face) => {
    const same = before.find((other) => overlap(face.box, other.box) > 0.3);
    if (!same) return face;
    const old = same.probabilities;
    return { ...face, probabilities: face.probabilities.map((p, i) => p + kept * (old[i] - p)) };
  });
}

/** Shows a card for each face; cards that are there are kept, so that their bars move. */
export function showFaces(faces, classes, ms, live = false) {
  const list = $("faces");
  while (list.children.length > faces.length) list.lastChild.remove();
  while (list.children.length < faces.length) list.append(newCard(classes));
  faces.forEach((face, i) => fillCard(list.children[i], face, i, classes));
  const speed = () => `${ms.find.toFixed(0)} ms to find, ${ms.face.toFixed(1)} ms a face`;
  const averaged = live ? "; bars are averaged over half a second" : "";
  $("speed").textContent = faces.length ? speed() + averaged : "";
}

function newCard(classes) {
  const card = $("face").content.cloneNode(true).firstElementChild;
  for (const name of classes) {
    const bar = $("bar").content.cloneNode(true).firstElementChild;
    bar.querySelector("span").textContent = name;
    card.querySelector("ul").append(bar);
  }
  return card;
}

function fillCard(card, face, i, classes) {
  const best = top(face.probabilities);
  card.querySelector("h2").textContent = `${i + 1}  ${classes[best]}`;
  const pixels = new ImageData(48, 48);
  face.image.forEach((grey, j) => pixels.data.set([grey, grey, grey, 255], 4 * j));
  card.querySelector("canvas").getContext("2d").putImageData(pixels, 0, 0);
  [...card.querySelector("ul").children].forEach((bar, j) => {
    bar.classList.toggle("top", j === best);
    bar.querySelector("b").style.width = `${100 * face.probabilities[j]}%`;
    bar.querySelector("data").textContent = percent(face.probabilities[j]);
  });
}

const top = (values) => values.indexOf(Math.max(...values));

/** Shows the network's card, all of it from network.json. */
export function showNetwork({ name, classes, parameters, accuracy }) {
  const size = `${parameters.toLocaleString("en")} parameters`;
  if (!accuracy) {
    $("network").textContent = `The network: ${name}, ${size}, accuracy not recorded`;
    $("accuracy").textContent = "No record of an evaluation came with these weights.";
    return;
  }
  const { split, dataset, images, value, recall } = accuracy;
  const [share, count] = [`${(100 * value).toFixed(1)} %`, images.toLocaleString("en")];
  $("network").textContent = `The network: ${name}, ${share} right on ${dataset} ${split}`;
  $("accuracy").textContent =
    `${name} has ${size}. Of the ${count} images of ${dataset}’s ${split} split, it names ` +
    `${share} as their label does.`;
  for (const label of classes) {
    const row = $("recall").tBodies[0].insertRow();
    row.innerHTML = '<th scope="row"></th><td></td>';
    [row.cells[0].textContent, row.cells[1].textContent] = [label, percent(recall[label])];
  }
  $("recall").hidden = false;
}
