// Where pictures come from: files and the camera. What is wrong with them is thrown as a sentence.

const NO_CAMERA = "The camera cannot be used here; photos can.";

/** Returns a file as {canvas, pixels: ImageData}, upright, on white, its sides at most `widest`. */
export async function readPicture(file, widest) {
  if (!file) throw new Error("There was no picture in that: choose, drop or paste an image file.");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    const name = `“${file.name}”`;
    throw new Error(`${name} is not a picture that this browser can read, or is damaged.`);
  }
  const scale = Math.min(1, widest / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return { canvas, pixels: context.getImageData(0, 0, canvas.width, canvas.height) };
}

/** Returns the camera's stream, which `video` plays. */
export async function openCamera(video) {
  if (!navigator.mediaDevices) {
    throw new Error(
      `${NO_CAMERA} Browsers give a camera only to pages from https or this machine (localhost).`,
    );
  }
  const size = { width: { ideal: 640 }, height: { ideal: 480 } };
  try {
    const stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "user", ...size },
    });
    video.srcObject = stream;
    await video.play();
    return stream;
  } catch (error) {
    const reasons = {
      NotAllowedError: "You, or this browser’s settings, refused it to this page.",
      NotFoundError: "There is none.",
      NotReadableError: "Another program may be using it.",
    };
    throw new Error(`${NO_CAMERA} ${reasons[error.name] ?? error.message}`);
  }
}
