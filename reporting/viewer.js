"use strict";
// Slices of the packed volumes of reporting/viewer.py on plain canvases, one canvas pixel for each voxel.
(() => {
  const root = document.getElementById("viewer");
  const told = JSON.parse(document.getElementById("viewer-data").textContent);
  const all = (selector) => [...root.querySelectorAll(selector)];
  const one = (selector) => root.querySelector(selector);
  const voxels = told.shape.reduce((a, b) => a * b, 1);
  const strides = told.shape.map((_, axis) => told.shape.slice(axis + 1).reduce((a, b) => a * b, 1));
  const colours = told.classes.map(([, colour]) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16)));
  const hidden = new Set([0]);
  const place = [...told.start];
  const unpacked = new Map();  // number of a volume -> promise of its bytes: channels, then the label map
  const panes = all("select[data-pane]").map((select, number) => ({ number, select, bytes: null }));
  const inputs = Object.fromEntries(["channel", "level", "width", "labels", "opacity"].map(
    (name) => [name, one("[data-control=" + name + "]")]));
  const windows = told.windows.map((pair) => [...pair]);

  async function unpack(text) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const source = new ReadableStream({ start(to) { to.enqueue(packed); to.close(); } });
    return new Uint8Array(await new Response(source.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
  }

  const channel = () => (inputs.channel ? Number(inputs.channel.value) : 0);
  const stored = (byte) => told.lo + (byte / 255) * (told.hi - told.lo);
  const shown = (value) => String(Number(value.toPrecision(3))) + (told.unit ? " " + told.unit : "");

  function greys() {
    const [low, high] = windows[channel()];
    const span = Math.max(high - low, 1e-12);
    return Uint8ClampedArray.from({ length: 256 }, (_, byte) => Math.round(255 * Math.min(Math.max(
      (stored(byte) - low) / span, 0), 1)));
  }

  function draw(pane, plane, canvas) {
    const { down, across, normal } = plane;
    const height = told.shape[down], width = told.shape[across], bytes = pane.bytes, grey = greys();
    const picture = new ImageData(width, height), out = picture.data;
    const labels = told.volumes[Number(pane.select.value)].label ? told.channels.length * voxels : -1;
    const alpha = inputs.labels && inputs.labels.checked ? Number(inputs.opacity.value) : 0;
    const first = told.colour ? 0 : channel() * voxels, step = told.colour ? voxels : 0;
    const base = normal === null ? 0 : place[normal] * strides[normal];
    for (let row = 0, at = 0; row < height; row++) {
      const start = base + strides[down] * (plane.from_end_down ? height - 1 - row : row);
      for (let column = 0; column < width; column++, at += 4) {
        const voxel = start + strides[across] * (plane.from_end_across ? width - 1 - column : column);
        const value = labels < 0 ? 0 : bytes[labels + voxel];
        const mix = hidden.has(value) || !colours[value] ? 0 : alpha;
        for (let part = 0; part < 3; part++) {
          const light = grey[bytes[first + part * step + voxel]];
          out[at + part] = mix ? Math.round((1 - mix) * light + mix * colours[value][part]) : light;
        }
        out[at + 3] = 255;
      }
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  function cross(plane, pane) {
    if (plane.normal === null) return;
    const at = (axis, from_end) => {
      const n = told.shape[axis], i = from_end ? n - 1 - place[axis] : place[axis];
      return (100 * (i + 0.5)) / n + "%";
    };
    pane.querySelector(".down").style.left = at(plane.across, plane.from_end_across);
    pane.querySelector(".across").style.top = at(plane.down, plane.from_end_down);
  }

  function tell(pane) {
    const voxel = place.reduce((sum, index, axis) => sum + index * strides[axis], 0);
    const value = shown(stored(pane.bytes[channel() * voxels + voxel]));
    const labelled = told.volumes[Number(pane.select.value)].label;
    const name = labelled ? ", " + (told.classes[pane.bytes[told.channels.length * voxels + voxel]] || ["?"])[0] : "";
    one("[data-told='" + pane.number + "']").textContent = "at the cross: " + value + name;
  }

  function update() {
    const [low, high] = windows[channel()];
    inputs.level.value = (low + high) / 2;
    inputs.width.value = high - low;
    one("[data-shows=level]").textContent = shown((low + high) / 2);
    one("[data-shows=width]").textContent = shown(high - low);
    told.planes.forEach((plane, number) => {
      const figure = one("[data-plane='" + number + "']"), slider = figure.querySelector("input");
      if (slider) {
        slider.value = place[plane.normal];
        figure.querySelector("output").textContent = place[plane.normal] + 1 + " of " + told.shape[plane.normal];
      }
      figure.querySelectorAll(".pane").forEach((box, index) => {
        if (panes[index].bytes) draw(panes[index], plane, box.querySelector("canvas"));
        cross(plane, box);
      });
    });
    panes.filter((pane) => pane.bytes).forEach(tell);
  }

  async function load(pane) {
    const number = Number(pane.select.value);
    if (!unpacked.has(number)) unpacked.set(number, unpack(told.volumes[number].data));
    const bytes = await unpacked.get(number);
    if (Number(pane.select.value) !== number) return;  // another was chosen meanwhile
    pane.bytes = bytes;
    update();
  }

  function point(event, plane, canvas) {
    const box = canvas.getBoundingClientRect();
    const along = (axis, share, from_end) => {
      const n = told.shape[axis], i = Math.min(n - 1, Math.max(0, Math.floor(share * n)));
      place[axis] = from_end ? n - 1 - i : i;
    };
    along(plane.across, (event.clientX - box.left) / box.width, plane.from_end_across);
    along(plane.down, (event.clientY - box.top) / box.height, plane.from_end_down);
    update();
  }

  function rewindow() {
    const middle = Number(inputs.level.value), half = Number(inputs.width.value) / 2;
    windows[channel()] = [middle - half, middle + half];
    update();
  }

  function listen() {
    panes.forEach((pane) => pane.select.addEventListener("change", () => guarded(pane)));
    ["level", "width"].forEach((name) => inputs[name].addEventListener("input", rewindow));
    ["channel", "labels", "opacity"].forEach((name) => inputs[name] && inputs[name].addEventListener("input", update));
    one("[data-control=reset]").addEventListener("click", () => {
      windows[channel()] = [...told.windows[channel()]];
      update();
    });
    all("[data-class]").forEach((box) => box.addEventListener("change", () => {
      hidden[box.checked ? "delete" : "add"](Number(box.dataset.class));
      update();
    }));
    told.planes.forEach((plane, number) => {
      const figure = one("[data-plane='" + number + "']"), slider = figure.querySelector("input");
      if (slider) slider.addEventListener("input", () => {
        place[plane.normal] = Number(slider.value);
        update();
      });
      figure.querySelectorAll("canvas").forEach((canvas) => {
        canvas.addEventListener("pointerdown", (event) => point(event, plane, canvas));
        canvas.addEventListener("pointermove", (event) => {
          if (event.pointerType === "mouse" && event.buttons & 1) point(event, plane, canvas);
        });
      });
    });
  }

  const guarded = (pane) => load(pane).catch((problem) => {
    one("[data-told='" + pane.number + "']").textContent = "This browser cannot show the volume: " + problem.message;
  });

  listen();
  panes.forEach(guarded);
})();
