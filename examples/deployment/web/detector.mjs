// Detect objects with an exported model (model.onnx and model.json) in a browser or in Node, with onnxruntime-web.
//
// Images are `{data, width, height}` as of a canvas: RGBA, a byte each, row by row. Boxes are [x1, y1, x2, y2] in
// pixels of the image, continuous: pixel i covers [i, i + 1].

const LAYOUT = 1; // of model.json, the newest that this file reads
const TASKS = ["instances", "keypoints", "proposals", "panoptic"];

export class Detector {
  /** `ort` is the module onnxruntime-web, `model` the bytes or the address of model.onnx, `meta` the object in model.json. */
  static async load(ort, model, meta) {
    if (!(meta.layout <= LAYOUT)) {
      throw new Error(`model.json has layout ${meta.layout}, this page reads layouts up to ${LAYOUT}: use a newer one.`);
    }
    if (!TASKS.includes(meta.task)) {
      throw new Error(`This page shows detections; a model of the task "${meta.task}" has none.`);
    }
    return new Detector(ort, await ort.InferenceSession.create(model, { executionProviders: ["wasm"] }), meta);
  }

  constructor(ort, session, meta) {
    Object.assign(this, { ort, session, meta });
  }

  /** Objects `{box, score, label, name, mask}` of an image, best first; `mask` is `{side, values}` or null. */
  async detect(image, threshold = this.meta.score_threshold ?? 0) {
    const size = resizedSize(image.height, image.width, this.meta);
    const { data, dims } = preprocess(image, this.meta);
    const feeds = {
      images: new this.ort.Tensor("float32", data, dims),
      image_sizes: new this.ort.Tensor("int64", BigInt64Array.from(size, BigInt), [1, 2]),
    };
    if (this.meta.inputs.includes("score_threshold")) {
      feeds.score_threshold = new this.ort.Tensor("float32", Float32Array.of(threshold), []);
    }
    const outputs = await this.session.run(feeds);
    return postprocess(outputs, this.meta, [image.height, image.width], size);
  }
}

/** Height and width that an image has when the model sees it. */
export function resizedSize(height, width, meta) {
  const { short_edge: short, long_edge: long, square } = meta.preprocessing;
  let size = [height, width];
  if (short) {
    const scale = short / Math.min(height, width);
    size = height < width ? [short, scale * width] : [scale * height, short];
    const longest = Math.max(...size);
    if (long && longest > long) size = size.map((x) => x * (long / longest));
  }
  const whole = (x) => Math.max(Math.floor(x + 0.5), 1);
  size = size.map(whole);
  const room = meta.size ?? (square ? [square, square] : size);
  if (size[0] > room[0] || size[1] > room[1]) {
    const scale = Math.min(room[0] / height, room[1] / width);
    size = [whole(height * scale), whole(width * scale)];
  }
  return size;
}

/** The input `images` of the model, `[1, 3, h, w]` with values from 0 to 255. */
export function preprocess(image, meta) {
  const [height, width] = resizedSize(image.height, image.width, meta);
  const [roomH, roomW] = meta.size ?? [height, width];
  const pixels = resize(image, height, width);
  const data = new Float32Array(3 * roomH * roomW);
  const order = meta.preprocessing.channels === "BGR" ? [2, 1, 0] : [0, 1, 2];
  for (let channel = 0; channel < 3; channel++) {
    for (let y = 0; y < height; y++) {
      const to = (channel * roomH + y) * roomW;
      for (let x = 0; x < width; x++) data[to + x] = pixels[(y * width + x) * 3 + order[channel]];
    }
  }
  return { data, dims: [1, 3, roomH, roomW] };
}

/** RGB bytes of an RGBA image in another size, as Pillow's bilinear filter makes them: a canvas would smooth otherwise. */
export function resize(image, height, width) {
  let source = new Uint8Array(image.width * image.height * 3);
  for (let i = 0, j = 0; i < source.length; i += 3, j += 4) {
    source[i] = image.data[j];
    source[i + 1] = image.data[j + 1];
    source[i + 2] = image.data[j + 2];
  }
  if (width !== image.width) source = resizeAxis(source, image.height, image.width, width, image.width * 3, 3);
  if (height !== image.height) source = resizeAxis(source, width, image.height, height, 3, width * 3);
  return source;
}

/** Resize along an axis whose pixels are `step` bytes apart; the lines that are resized begin `stride` bytes apart. */
function resizeAxis(source, lines, size, newSize, stride, step) {
  const isRow = step === 3;
  const [newStride, newStep] = isRow ? [newSize * 3, 3] : [3, step];
  const out = new Uint8Array(lines * newSize * 3);
  taps(size, newSize).forEach(({ first, weights }, i) => {
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 1 << 21;
        for (let k = 0; k < weights.length; k++) {
          sum += source[line * stride + (first + k) * step + channel] * weights[k];
        }
        out[line * newStride + i * newStep + channel] = Math.min(sum >> 22, 255);
      }
    }
  });
  return out;
}

/** For each new pixel the first old one that counts, and the weights from there on, in units of 2 ** -22. */
function taps(size, newSize) {
  const scale = size / newSize;
  const support = Math.max(scale, 1);
  return Array.from({ length: newSize }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const last = Math.min(Math.trunc(center + support + 0.5), size);
    const raw = Array.from({ length: last - first }, (_, k) =>
      Math.max(1 - Math.abs((k + first - center + 0.5) * (1 / support)), 0));
    const total = raw.reduce((a, b) => a + b, 0);
    return { first, weights: raw.map((w) => Math.floor((w / total) * (1 << 22) + 0.5)) };
  });
}

/** Objects in the frame of the original image; those without area inside of it are left out. */
export function postprocess(outputs, meta, [height, width], [inputH, inputW]) {
  const boxes = outputs.boxes.data;
  const scale = [width / inputW, height / inputH];
  const end = [width, height];
  const isFlat = meta.output_layout === "flat";
  const count = isFlat ? outputs.boxes.dims[0] : Number(outputs.count.data[0]);
  const side = meta.masks === "raw" ? outputs.masks.dims.at(-1) : 0;
  const found = [];
  for (let row = 0; row < count; row++) {
    const box = [0, 1, 2, 3].map((i) => Math.min(Math.max(boxes[row * 4 + i] * scale[i % 2], 0), end[i % 2]));
    if (!(box[2] > box[0] && box[3] > box[1])) continue;
    const label = outputs.classes ? Number(outputs.classes.data[row]) : 0;
    found.push({
      box,
      score: outputs.scores.data[row],
      label,
      name: outputs.classes ? meta.classes?.[label] ?? `class ${label}` : "region",
      mask: side ? { side, values: outputs.masks.data.subarray(row * side * side, (row + 1) * side * side) } : null,
    });
  }
  return found;
}

/** A colour of a class, as CSS. */
export function colorOf(label, meta) {
  const [r, g, b] = meta.class_colors?.[label] ?? [];
  return r === undefined ? `hsl(${(7 + label * 222.492) % 360} 75% 55%)` : `rgb(${r} ${g} ${b})`;
}

/**
 * Draw objects into the 2D context of a canvas that shows the image, `zoom` times as large. `small` is another canvas, for
 * the masks.
 */
export function draw(context, objects, meta, small, zoom = 1) {
  const line = Math.max(2, Math.round(Math.min(context.canvas.width, context.canvas.height) / 250));
  objects = objects.map((object) => ({ ...object, box: object.box.map((x) => x * zoom) }));
  context.lineWidth = line;
  context.font = `${8 * line}px sans-serif`;
  context.textBaseline = "top";
  for (const { box, label, mask } of objects) {
    const [x, y] = box;
    const [w, h] = [box[2] - x, box[3] - y];
    if (mask) {
      small.width = small.height = mask.side;
      const brush = small.getContext("2d");
      const cells = brush.createImageData(mask.side, mask.side);
      mask.values.forEach((p, i) => (cells.data[i * 4 + 3] = p >= (meta.mask_threshold ?? 0.5) ? 255 : 0));
      brush.putImageData(cells, 0, 0);
      brush.globalCompositeOperation = "source-in";
      brush.fillStyle = colorOf(label, meta);
      brush.fillRect(0, 0, mask.side, mask.side);
      context.globalAlpha = 0.45;
      context.drawImage(small, x, y, w, h);
      context.globalAlpha = 1;
    }
    context.strokeStyle = colorOf(label, meta);
    context.strokeRect(x, y, w, h);
  }
  const taken = [];
  for (const { box, score, label, name } of objects) {
    const text = `${name} ${Math.round(score * 100)}%`;
    const [width, height] = [context.measureText(text).width + 6 * line, 11 * line];
    const x = Math.max(Math.min(box[0] - line / 2, context.canvas.width - width), 0);
    let y = Math.max(box[1] - height, 0);
    for (const other of taken) {  // keep clear of the names that are there
      if (x < other.x + other.width && other.x < x + width && Math.abs(y - other.y) < height) y = other.y + height;
    }
    taken.push({ x, y, width });
    context.fillStyle = "rgb(20 20 20 / 75%)";
    context.fillRect(x, y, width, height);
    context.fillStyle = colorOf(label, meta);
    context.fillRect(x, y, 2 * line, height);
    context.fillStyle = "white";
    context.fillText(text, x + 4 * line, y + 1.5 * line);
  }
}
