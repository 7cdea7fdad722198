"use strict";
/* The slice browser: any plane of a map in true shape, by mouse, finger or keyboard. */

(() => {
  const { element, format, colours } = diffuse;
  const { AXES, MARGIN, miller } = diffuse.painter;

  async function read(key, head) {
    const codes = {};
    for (const [name, column] of Object.entries(head.columns)) {
      const bytes = await diffuse.unpack(`${key}-${name}`);
      if (column.bits === 8) codes[name] = bytes;
      else {
        const n = bytes.length / 2;
        codes[name] = new Uint16Array(n);
        for (let i = 0; i < n; i++) codes[name][i] = 256 * bytes[i] + bytes[n + i];
      }
    }
    return codes;
  }

  async function start(root) {
    const key = root.dataset.key;
    const head = diffuse.json(`${key}-head`);
    const lattice = diffuse.lattice(head, await read(key, head));
    const state = { axis: 2, layer: 0, view: 0, zoom: 1, x: 0, y: 0, contrast: 0, outline: true, grid: false, at: null };
    const size = 1.02 / head.d_min;
    let plane = null;

    // ---- controls
    const buttons = { axis: [], view: [] };
    const group = (name, label, items) => {
      buttons[name] = items.map(([text, title, value]) =>
        element("button", { type: "button", title, onclick: () => set({ [name]: value }) }, text)
      );
      return element("div", { role: "group", "aria-label": label }, ...buttons[name]);
    };
    const axes = group("axis", "plane", [["0kl", "planes of constant h (key h)", 0], ["h0l", "planes of constant k (key k)", 1],
      ["hk0", "planes of constant l (key l)", 2]]);
    const views = group("view", "what is shown", head.views.map((view, i) => [view.label, `${view.about} (key ${view.key})`, i]));
    const slider = element("input", { type: "range", step: "1", oninput: () => set({ layer: Number(slider.value) }) });
    const shown = element("output", {});
    const name = element("span", {});
    const contrast = element("input", { type: "range", min: "-3", max: "3", step: "0.1", value: "0",
      oninput: () => set({ contrast: Number(contrast.value) }) });
    const check = (what, text) => {
      const box = element("input", { type: "checkbox", onchange: () => set({ [what]: box.checked }) });
      box.checked = state[what];
      return [box, element("label", {}, box, text)];
    };
    const [outline, outlineLabel] = check("outline", "asymmetric unit (o)");
    const [grid, gridLabel] = check("grid", "Miller indices (g)");
    const press = (text, title, change) => element("button", { type: "button", title, "aria-label": title, onclick: change }, text);
    const canvas = element("canvas", { tabindex: "0", role: "img" });
    const bar = element("canvas", { "aria-hidden": "true" });
    const readout = element("output", { class: "readout" }, "Point at the plane to read values.");
    root.append(
      element("div", { class: "controls" }, axes, views),
      element("div", { class: "controls" }, element("label", { class: "layer" }, name, slider, shown)),
      canvas, bar, readout,
      element("div", { class: "controls" },
        element("div", { role: "group", "aria-label": "zoom" },
          press("−", "smaller (key −)", () => zoom(1 / 1.5)), press("+", "larger (key +)", () => zoom(1.5)),
          press("whole", "all of the plane (key 0)", () => set({ zoom: 1, x: 0, y: 0 }))),
        element("label", {}, "contrast", contrast), outlineLabel, gridLabel),
      element("p", { class: "help" }, "Keys, when the plane has the focus: arrows for the next plane, Page Up and Page Down for the next " +
        "whole index, Home for 0; + − 0 for the size, Shift and arrows to move; h k l for the axis; " +
        head.views.map((view) => `${view.key} ${view.label}`).join(", ") + "." + (head.note ? ` ${head.note}.` : ""))
    );

    // ---- where things are on the canvas, in CSS pixels
    const frame = () => {
      const width = canvas.clientWidth;
      const side = width - MARGIN.left - MARGIN.right;
      return { width, side, scale: (side / 2 / size) * state.zoom, cx: MARGIN.left + side / 2, cy: MARGIN.top + side / 2 };
    };
    const screen = (x, y, f) => [f.cx + (x - state.x) * f.scale, f.cy - (y - state.y) * f.scale];
    const world = (px, py, f) => [(px - f.cx) / f.scale + state.x, (f.cy - py) / f.scale + state.y];

    const paint = diffuse.painter(head, screen, world);

    function limits(view) {
      const factor = 2 ** -state.contrast;
      return view.signed ? [view.low * factor, view.high * factor] : [view.low, view.low + (view.high - view.low) * factor];
    }

    const valueAt = (view, index) => {
      const at = lattice.place(...index);
      return lattice.value(view.column, at, view.whole ? lattice.size(index) : null);
    };

    function colour(view, x) {
      const [low, high] = limits(view);
      const table = view.signed ? colours.signed : colours.positive;
      const c = Math.round(255 * Math.min(1, Math.max(0, (x - low) / (high - low))));
      return [table[3 * c], table[3 * c + 1], table[3 * c + 2]];
    }

    /* The plane as a picture of one pixel for each voxel. */
    function picture(view) {
      const [n1, n2] = [2 * plane.m1 + 1, 2 * plane.m2 + 1];
      const image = new ImageData(n1, n2);
      for (let j = -plane.m2, at = 0; j <= plane.m2; j++) {
        for (let i = -plane.m1; i <= plane.m1; i++, at++) {
          if (plane.places[at] < 0) continue;
          const x = lattice.value(view.column, plane.places[at], view.whole ? lattice.size(plane.index(i, j)) : null);
          const rgb = Number.isNaN(x) ? colours.unmeasured : colour(view, x);
          image.data.set([rgb[0], rgb[1], rgb[2], 255], 4 * at);
        }
      }
      const result = element("canvas", { width: n1, height: n2 });
      result.getContext("2d").putImageData(image, 0, 0);
      return result;
    }

    let drawn = {}; // the last picture, and what it shows
    function draw() {
      const view = head.views[state.view];
      if (!plane || plane.axis !== state.axis || plane.layer !== state.layer) plane = lattice.plane(state.axis, state.layer);
      const what = [state.axis, state.layer, state.view, state.contrast].join();
      if (drawn.what !== what) drawn = { what, image: picture(view) };
      const f = frame();
      const ratio = window.devicePixelRatio || 1;
      const height = f.side + MARGIN.top + MARGIN.bottom;
      canvas.width = Math.round(f.width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.height = `${height}px`;
      const c = canvas.getContext("2d");
      c.setTransform(ratio, 0, 0, ratio, 0, 0);
      c.fillStyle = "#fff";
      c.fillRect(0, 0, f.width, height);
      c.save();
      c.beginPath();
      c.rect(MARGIN.left, MARGIN.top, f.side, f.side);
      c.clip();
      const [px, py] = screen(...plane.flat(-plane.m1 - 0.5, -plane.m2 - 0.5), f);
      c.save();
      c.transform(plane.a[0] * f.scale, 0, plane.b[0] * f.scale, -plane.b[1] * f.scale, px, py);
      c.imageSmoothingEnabled = false;
      c.drawImage(drawn.image, 0, 0);
      c.restore();
      if (state.grid) paint.grid(c, f, plane);
      if (state.outline) paint.outline(c, f, plane);
      if (state.at) paint.mark(c, f, plane, state.at);
      c.restore();
      paint.frame(c, f, plane);
      paint.bar(bar, view, limits(view), (x) => colour(view, x));
      const place = AXES.split("").map((x, i) => (i === state.axis ? miller(state.layer, head.subdivide[i]) : x)).join(" ");
      canvas.setAttribute("aria-label", `Plane ${place}, ${view.label}: ${view.about}`);
    }

    // ---- what changes
    function set(change) {
      const before = { ...state };
      Object.assign(state, change);
      if ("axis" in change && change.axis !== before.axis) {
        // the same distance from the origin, as nearly as there is a plane
        if (!("layer" in change)) state.layer = Math.round((before.layer / head.subdivide[before.axis]) * head.subdivide[state.axis]);
        state.at = null;
      }
      const extent = head.extent[state.axis];
      state.layer = Math.min(extent, Math.max(-extent, state.layer));
      if (state.layer !== before.layer && state.at) state.at[state.axis] = state.layer;
      state.zoom = Math.min(40, Math.max(1, state.zoom));
      const free = size * (1 - 1 / state.zoom);
      state.x = Math.min(free, Math.max(-free, state.x));
      state.y = Math.min(free, Math.max(-free, state.y));
      state.contrast = Math.min(3, Math.max(-3, state.contrast));
      buttons.axis.forEach((b, i) => b.setAttribute("aria-pressed", i === state.axis));
      buttons.view.forEach((b, i) => b.setAttribute("aria-pressed", i === state.view));
      slider.min = -extent;
      slider.max = extent;
      slider.value = state.layer;
      const index = [0, 0, 0];
      index[state.axis] = state.layer;
      name.textContent = `${AXES[state.axis]} =`;
      slider.setAttribute("aria-label", `plane of constant ${AXES[state.axis]}`);
      slider.setAttribute("aria-valuetext", miller(state.layer, head.subdivide[state.axis]));
      shown.textContent = `${miller(state.layer, head.subdivide[state.axis])}  (${diffuse.format(lattice.size(index), 3)} 1/Å)`;
      contrast.value = state.contrast;
      outline.checked = state.outline;
      grid.checked = state.grid;
      canvas.style.touchAction = state.zoom > 1 ? "none" : "pan-y";
      draw();
      tell();
    }

    const zoom = (factor) => set({ zoom: state.zoom * factor });

    function tell() {
      if (!state.at) return;
      const index = state.at;
      const d = 1 / lattice.size(index);
      const words = head.views.map((view) => `${view.label} ${format(valueAt(view, index))}`);
      const hkl = index.map((x, i) => `${AXES[i]} ${miller(x, head.subdivide[i])}`).join("  ");
      const measured = lattice.place(...index) < 0 ? "outside the limits of resolution"
        : Number.isNaN(valueAt(head.views[0], index)) ? "not measured" : words.join(", ");
      readout.textContent = `${hkl}; d ${format(d, 4)} Å, 1/d ${format(1 / d, 4)} 1/Å: ${measured}`;
    }

    // ---- mouse, finger, keyboard
    function under(event) {
      const box = canvas.getBoundingClientRect();
      const f = frame();
      const [px, py] = [event.clientX - box.left, event.clientY - box.top];
      if (px < MARGIN.left || py < MARGIN.top || px > MARGIN.left + f.side || py > MARGIN.top + f.side) return null;
      const [i, j] = plane.inverse(...world(px, py, f)).map(Math.round);
      return Math.abs(i) > plane.m1 || Math.abs(j) > plane.m2 ? null : plane.index(i, j);
    }
    let held = null;
    canvas.addEventListener("pointerdown", (event) => {
      held = { x: event.clientX, y: event.clientY, at: [state.x, state.y] };
      if (state.zoom > 1) canvas.setPointerCapture(event.pointerId);
    });
    const release = () => { held = null; };
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("pointermove", (event) => {
      if (held && state.zoom > 1) {
        const f = frame();
        set({ x: held.at[0] - (event.clientX - held.x) / f.scale, y: held.at[1] + (event.clientY - held.y) / f.scale });
      } else point(event);
    });
    canvas.addEventListener("click", (event) => point(event));
    function point(event) {
      const at = under(event);
      if (String(at) === String(state.at)) return;
      state.at = at;
      draw();
      tell();
    }
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] }[event.key];
      const parts = head.subdivide[state.axis];
      const letter = event.key.toLowerCase();
      const view = head.views.findIndex((item) => item.key === letter);
      if (move && event.shiftKey) set({ x: state.x + (0.3 * size * move[0]) / state.zoom, y: state.y + (0.3 * size * move[1]) / state.zoom });
      else if (move) set({ layer: state.layer + move[0] + move[1] });
      else if (event.key === "PageUp") set({ layer: (Math.floor(state.layer / parts) + 1) * parts });
      else if (event.key === "PageDown") set({ layer: (Math.ceil(state.layer / parts) - 1) * parts });
      else if (event.key === "Home") set({ layer: 0 });
      else if (event.key === "+" || event.key === "=") zoom(1.5);
      else if (event.key === "-" || event.key === "−") zoom(1 / 1.5);
      else if (event.key === "0") set({ zoom: 1, x: 0, y: 0 });
      else if (AXES.includes(letter)) set({ axis: AXES.indexOf(letter) });
      else if (letter === "o") set({ outline: !state.outline });
      else if (letter === "g") set({ grid: !state.grid });
      else if (view >= 0) set({ view });
      else return;
      event.preventDefault();
    });
    new ResizeObserver(() => draw()).observe(root);

    set({});
    return {
      state,
      head,
      set,
      value: (view, index) => valueAt(head.views[view], index),
      /* Where a voxel of this plane is on the screen, CSS pixels from the corner of the window. */
      screen: (index) => {
        const box = canvas.getBoundingClientRect();
        const [x, y] = screen(...plane.flat(index[plane.first], index[plane.second]), frame());
        return [x + box.left, y + box.top];
      },
      /* The colours of voxels there, [red, green, blue] of each. */
      pixels: (indices) => {
        const copy = element("canvas", { width: canvas.width, height: canvas.height }).getContext("2d", { willReadFrequently: true });
        copy.drawImage(canvas, 0, 0);
        const image = copy.getImageData(0, 0, canvas.width, canvas.height);
        const ratio = window.devicePixelRatio || 1;
        return indices.map((index) => {
          const at = screen(...plane.flat(index[plane.first], index[plane.second]), frame()).map((x) => Math.floor(x * ratio));
          return [...image.data.slice(4 * (at[1] * image.width + at[0]), 4 * (at[1] * image.width + at[0]) + 3)];
        });
      },
      /* Is it in the asymmetric unit? */
      unique: (index) => plane.inside[(index[plane.second] + plane.m2) * (2 * plane.m1 + 1) + index[plane.first] + plane.m1] === 1,
      readout: () => readout.textContent,
    };
  }

  async function all() {
    for (const root of document.querySelectorAll(".browser")) {
      try {
        diffuse.browsers[root.id] = await start(root);
      } catch (error) {
        root.append(element("p", { class: "warnings" }, `The slices cannot be shown: ${error.message}.`));
      }
    }
  }

  diffuse.ready = Promise.all([all(), diffuse.plots]);
})();
