// Detect objects in Node. Node decodes no image files itself; this reads PPM, which Pillow and others write.
//
//   npm install
//   node predict.mjs FOLDER_OF_THE_MODEL photo.ppm [threshold]

import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";
import { Detector } from "./detector.mjs";

function decodePpm(bytes) {
  const head = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(bytes.subarray(0, 100).toString("latin1"));
  if (!head) throw new Error("Expected a binary PPM image (P6) with values up to 255.");
  const [width, height] = [Number(head[1]), Number(head[2])];
  const data = new Uint8ClampedArray(width * height * 4).fill(255);
  for (let i = 0; i < width * height; i++) {
    for (let channel = 0; channel < 3; channel++) data[i * 4 + channel] = bytes[head[0].length + i * 3 + channel];
  }
  return { data, width, height };
}

const [folder, photo, threshold] = process.argv.slice(2);
if (!photo) {
  console.error("usage: node predict.mjs FOLDER_OF_THE_MODEL photo.ppm [threshold]");
  process.exit(2);
}
try {
  const meta = JSON.parse(await readFile(`${folder}/model.json`, "utf8"));
  const detector = await Detector.load(ort, await readFile(`${folder}/${meta.artifact}`), meta);
  const objects = await detector.detect(decodePpm(await readFile(photo)), threshold && Number(threshold));
  console.log(JSON.stringify(objects.map(({ box, score, label, name }) => ({ box, score, label, name }))));
} catch (error) {
  console.error(`error: ${error.message}`);
  process.exit(1);
}
