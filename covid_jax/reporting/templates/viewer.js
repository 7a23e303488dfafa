// Shows a case and a run's mask: with NiiVue in three planes, or, without WebGL, one slice at a time.
const find = (id) => document.getElementById(id);
const say = (text) => { find("told").textContent = text; };
const single = Object.keys(CLASSES).length === 1;
const GREEN = "#00e000", RED = "#ff2020", REFERENCE = "reference";
// The colours of label values in a mask: of one class those of reference and prediction.
const inColour = (colour) => Object.fromEntries(
  Object.entries(CLASSES).map(([value, [, own]]) => [value, rgb(single ? colour : own)]));
const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
let shown = null; // {scans, reference, masks}, each volume a NIfTI file in base64
let draw = null;

function load(address) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = address;
    script.onload = () => { script.remove(); resolve(); };
    script.onerror = () => reject(new Error(`${address} is not beside this page`));
    document.head.append(script);
  });
}

// Called by viewer/case_N.js.
function showCase(name, content) {
  shown = content;
  choose("channel", Object.keys(content.scans));
  // The reference of several classes is looked at by itself, in the colours of the masks.
  choose("run", [...Object.keys(content.masks), ...(single ? [] : [REFERENCE])]);
}

function choose(id, names) {
  const before = find(id).value;
  find(id).replaceChildren(...names.map((name) => new Option(name)));
  if (names.includes(before)) find(id).value = before;
  find(id).parentElement.hidden = names.length < 2 && id === "channel";
}

// What lies over the scan: volumes with the colours of their label values.
function layers() {
  const run = find("run").value;
  const mask = run === REFERENCE ? shown.reference : shown.masks[run];
  const reference = single && find("outline").checked ? [[shown.reference, inColour(GREEN)]] : [];
  return [...reference, [mask, inColour(RED)]];
}

function legend() {
  const lines = single
    ? Object.values(CLASSES).flatMap(([name]) => [[`${name}, reference`, GREEN], [`${name}, prediction`, RED]])
    : Object.values(CLASSES);
  find("legend").replaceChildren(...lines.map(([name, colour]) => {
    const line = document.createElement("li"), square = document.createElement("i");
    square.style.background = colour;
    line.append(square, name);
    return line;
  }));
}

function planes(niivue) {
  const viewer = new niivue.Niivue({ backColor: [0, 0, 0, 1], crosshairWidth: 0.5, crosshairColor: [1, 1, 1, 0.6], show3Dcrosshair: false,
    isColorbar: false, showLegend: false, dragAndDropEnabled: false });
  const volume = (base64, name, opacity) =>
    niivue.NVImage.loadFromBase64({ base64, name, colormap: "gray", opacity, cal_min: 0, cal_max: 255 });
  let ready = viewer.attachToCanvas(find("canvas")).then(() => {
    viewer.setSliceType(viewer.sliceTypeMultiplanar);
    viewer.opts.multiplanarShowRender = niivue.SHOW_RENDER.NEVER;
  });
  return () => {
    ready = ready.then(async () => {
      const at = viewer.volumes.length && viewer.scene.crosshairPos.slice();
      for (const volume of [...viewer.volumes]) viewer.removeVolume(volume);
      viewer.addVolume(await volume(shown.scans[find("channel").value], "scan.nii.gz", 1));
      for (const [base64, colours] of layers()) {
        const mask = await volume(base64, "mask.nii.gz", 0.5);
        const values = [0, ...Object.keys(colours).map(Number)];
        const of = (part) => values.map((value) => (value ? colours[value][part] : 0));
        mask.setColormapLabel({ R: of(0), G: of(1), B: of(2), A: values.map((value) => (value ? 255 : 0)),
          I: values, labels: values.map(String) });
        viewer.addVolume(mask);
      }
      if (at) viewer.scene.crosshairPos = at;
      viewer.drawScene();
      find("viewer").dataset.drawn = find("run").value;
    });
    return ready;
  };
}

// Of a file that the report wrote: 8 bits a voxel, from byte 352 on, at most three axes.
async function voxelsOf(base64) {
  const packed = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const header = new DataView(bytes.buffer);
  const [width, height, depth] = [1, 2, 3].map((axis) => header.getInt16(40 + 2 * axis, true));
  return { width, height, depth, values: bytes.subarray(352) };
}

function slices() {
  const slider = find("slice");
  find("slider").hidden = false;
  slider.oninput = () => draw();
  return async () => {
    const scan = await voxelsOf(shown.scans[find("channel").value]);
    const over = [];
    for (const [base64, colours] of layers()) over.push([(await voxelsOf(base64)).values, colours]);
    if (Number(slider.max) !== scan.depth - 1) {
      slider.max = scan.depth - 1;
      slider.value = Math.floor(scan.depth / 2);
    }
    const canvas = find("canvas");
    [canvas.width, canvas.height] = [scan.width, scan.height];
    const picture = new ImageData(scan.width, scan.height);
    const area = scan.width * scan.height;
    for (let place = 0; place < area; place++) {
      const voxel = Number(slider.value) * area + place;
      let pixel = Array(3).fill(scan.values[voxel]);
      for (const [values, colours] of over) {
        const colour = colours[values[voxel]];
        if (colour) pixel = pixel.map((grey, part) => (grey + colour[part]) / 2);
      }
      picture.data.set([...pixel, 255], 4 * place);
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
    find("viewer").dataset.drawn = find("run").value;
  };
}

async function start() {
  find("slider").hidden = true;
  find("outline").parentElement.hidden = !single;
  legend();
  if (document.createElement("canvas").getContext("webgl2")) {
    await load("viewer/niivue.umd.js");
    draw = planes(window.niivue);
  } else {
    say("This browser has no WebGL: one slice at a time.");
    draw = slices();
  }
  const open = () => load(`viewer/case_${Number(find("case").value)}.js`).then(draw);
  find("case").onchange = () => open().catch((error) => say(error.message));
  find("run").onchange = find("channel").onchange = find("outline").onchange = () => draw();
  await open();
}
start().catch((error) => say(error.message));
