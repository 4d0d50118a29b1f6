// Looks at images at full size: zoomed with + and -, the next one with the arrow keys.

const at = (id) => document.getElementById(id);
const ZOOMS = [1, 1.5, 2, 3, 4, 6];

const state = { images: [], index: 0, zoom: 0 };

export function look(images, index, alt) {
  Object.assign(state, { images, index, zoom: 0, alt });
  draw();
  at("viewer").showModal();
  at("viewed-frame").focus();
}

function draw() {
  const { images, index, zoom } = state;
  const image = at("viewed");
  image.src = images[index];
  image.alt = state.alt(index);
  image.style.maxWidth = zoom ? "none" : "100%";
  image.style.maxHeight = zoom ? "none" : "100%";
  image.style.width = zoom ? `${ZOOMS[zoom] * 100}%` : "auto";
  at("viewed-place").textContent = images.length > 1 ? `${index + 1} of ${images.length}` : "";
  for (const id of ["image-before", "image-after"]) at(id).hidden = images.length < 2;
  at("zoom-out").disabled = zoom === 0;
  at("zoom-in").disabled = zoom === ZOOMS.length - 1;
  at("zoom-value").textContent = zoom ? `${ZOOMS[zoom]} ×` : "fits";
}

function turn(by) {
  const { images, index } = state;
  if (images.length < 2) return;
  Object.assign(state, { index: (index + by + images.length) % images.length, zoom: 0 });
  draw();
}

function zoom(by) {
  state.zoom = Math.min(ZOOMS.length - 1, Math.max(0, state.zoom + by));
  draw();
}

const KEYS = {
  ArrowLeft: () => turn(-1),
  ArrowRight: () => turn(1),
  "+": () => zoom(1),
  "=": () => zoom(1),
  "-": () => zoom(-1),
  0: () => zoom(-ZOOMS.length),
};

at("viewer").addEventListener("keydown", (event) => {
  const deed = KEYS[event.key];
  const scrolls = state.zoom > 0 && event.key.startsWith("Arrow");
  if (!deed || scrolls || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  deed();
});
at("viewed").addEventListener("dblclick", () => zoom(state.zoom ? -ZOOMS.length : 2));
at("image-before").addEventListener("click", () => turn(-1));
at("image-after").addEventListener("click", () => turn(1));
at("zoom-out").addEventListener("click", () => zoom(-1));
at("zoom-in").addEventListener("click", () => zoom(1));
