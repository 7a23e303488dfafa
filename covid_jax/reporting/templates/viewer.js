// Shows a case and a run's mask: with NiiVue in three planes, or, without WebGL, one slice at a time.
const find = (id) => document.getElementById(id);
const say = (text) => { find("told").textContent = text; };
let shown = null; // {scan, reference, masks}, each volume a NIfTI file in base64
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
  const before = find("run").value;
  find("run").replaceChildren(...Object.keys(content.masks).map((run) => new Option(run)));
  if (before in content.masks) find("run").value = before;
}

function planes(niivue) {
  const viewer = new niivue.Niivue({ backColor: [0, 0, 0, 1], crosshairWidth: 0.5, show3Dcrosshair: false,
    isColorbar: false, dragAndDropEnabled: false });
  const layer = (base64, name, colormap, cal_max, opacity) =>
    niivue.NVImage.loadFromBase64({ base64, name, colormap, opacity, cal_min: 0, cal_max });
  let ready = viewer.attachToCanvas(find("canvas")).then(() => {
    viewer.setSliceType(viewer.sliceTypeMultiplanar);
    viewer.opts.multiplanarShowRender = niivue.SHOW_RENDER.NEVER;
  });
  return () => {
    ready = ready.then(async () => {
      const at = viewer.volumes.length && viewer.scene.crosshairPos.slice();
      for (const volume of [...viewer.volumes]) viewer.removeVolume(volume);
      viewer.addVolume(await layer(shown.scan, "scan.nii.gz", "gray", 255, 1));
      if (find("outline").checked)
        viewer.addVolume(await layer(shown.reference, "reference.nii.gz", "green", 1, 0.45));
      viewer.addVolume(await layer(shown.masks[find("run").value], "mask.nii.gz", "red", 1, 0.45));
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
    const scan = await voxelsOf(shown.scan);
    const reference = await voxelsOf(shown.reference);
    const mask = await voxelsOf(shown.masks[find("run").value]);
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
      const grey = scan.values[voxel];
      const green = find("outline").checked && reference.values[voxel] ? 110 : 0;
      const red = mask.values[voxel] ? 110 : 0;
      picture.data.set([grey + red, grey + green, grey - (red + green) / 3, 255], 4 * place);
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
    find("viewer").dataset.drawn = find("run").value;
  };
}

async function start() {
  find("slider").hidden = true;
  if (document.createElement("canvas").getContext("webgl2")) {
    await load("viewer/niivue.umd.js");
    draw = planes(window.niivue);
  } else {
    say("This browser has no WebGL: one slice at a time.");
    draw = slices();
  }
  const open = () => load(`viewer/case_${Number(find("case").value)}.js`).then(draw);
  find("case").onchange = () => open().catch((error) => say(error.message));
  find("run").onchange = find("outline").onchange = () => draw();
  await open();
}
start().catch((error) => say(error.message));
