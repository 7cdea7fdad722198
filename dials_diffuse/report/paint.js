"use strict";
/* What is painted around and over a plane of a map: frame and axes, indices, outlines, the bar of colours. */

diffuse.painter = (() => {
  const { format } = diffuse;
  const AXES = "hkl";
  const MARGIN = { left: 54, right: 40, top: 40, bottom: 38 };
  const VULGAR = { "1/2": "½", "1/3": "⅓", "2/3": "⅔", "1/4": "¼", "3/4": "¾", "1/5": "⅕", "2/5": "⅖", "3/5": "⅗", "4/5": "⅘" };

  /* An index as people write it, such as −1⅓. */
  function miller(index, parts) {
    const size = Math.abs(index);
    const whole = Math.floor(size / parts);
    let rest = size % parts, below = parts;
    for (let d = rest; d > 1; d--) if (rest % d === 0 && below % d === 0) { rest /= d; below /= d; }
    const fraction = rest ? VULGAR[`${rest}/${below}`] || `${whole ? " " : ""}${rest}/${below}` : "";
    return (index < 0 ? "−" : "") + (whole || !rest ? whole : "") + fraction;
  }

  /* Round steps for an axis with about so many marks. */
  function step(range, marks) {
    const raw = range / marks, power = 10 ** Math.floor(Math.log10(raw));
    return power * [1, 2, 5, 10].find((x) => x * power >= raw);
  }

  /* head: of the browser; screen, world: from the plane to the canvas and back, in the frame f */
  function Painter(head, screen, world) {
    function outline(c, f, plane) {
      const n1 = 2 * plane.m1 + 1;
      const has = (i, j) =>
        Math.abs(i) <= plane.m1 && Math.abs(j) <= plane.m2 && plane.inside[(j + plane.m2) * n1 + i + plane.m1] === 1;
      c.beginPath();
      const edge = (i1, j1, i2, j2) => {
        c.moveTo(...screen(...plane.flat(i1, j1), f));
        c.lineTo(...screen(...plane.flat(i2, j2), f));
      };
      for (let j = -plane.m2; j <= plane.m2 + 1; j++) {
        for (let i = -plane.m1; i <= plane.m1 + 1; i++) {
          if (has(i, j) !== has(i - 1, j)) edge(i - 0.5, j - 0.5, i - 0.5, j + 0.5);
          if (has(i, j) !== has(i, j - 1)) edge(i - 0.5, j - 0.5, i + 0.5, j - 0.5);
        }
      }
      c.strokeStyle = "#000";
      c.lineWidth = 1.4;
      c.stroke();
    }

    function mark(c, f, plane, at) {
      const corners = [[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]];
      c.beginPath();
      corners.forEach(([u, v], n) => {
        const corner = screen(...plane.flat(at[plane.first] + u, at[plane.second] + v), f);
        n ? c.lineTo(...corner) : c.moveTo(...corner);
      });
      c.closePath();
      c.lineWidth = 2;
      c.strokeStyle = "#e69f00";
      c.stroke();
    }

    /* Whole indices: [value, its place along the edge of the frame] for both axes of the plane. */
    function indices(f, plane) {
      const top = world(MARGIN.left, MARGIN.top, f), low = world(MARGIN.left + f.side, MARGIN.top + f.side, f);
      const marks = [[], []];
      const ranges = [
        [plane.inverse(top[0], top[1])[0], plane.inverse(low[0], top[1])[0]],
        [plane.inverse(top[0], low[1])[1], plane.inverse(top[0], top[1])[1]],
      ];
      [plane.first, plane.second].forEach((axis, n) => {
        const parts = head.subdivide[axis];
        const every = Math.max(1, Math.round(step((ranges[n][1] - ranges[n][0]) / parts, f.side / 55)));
        for (let x = Math.ceil(ranges[n][0] / parts / every) * every; x <= ranges[n][1] / parts; x += every) marks[n].push(x);
      });
      return { marks, top, low };
    }

    function grid(c, f, plane) {
      const { marks } = indices(f, plane);
      const far1 = 3 * plane.m1 + 9, far2 = 3 * plane.m2 + 9;
      c.beginPath();
      const line = (from, to) => {
        c.moveTo(...screen(...plane.flat(...from), f));
        c.lineTo(...screen(...plane.flat(...to), f));
      };
      for (const x of marks[0]) line([x * head.subdivide[plane.first], -far2], [x * head.subdivide[plane.first], far2]);
      for (const x of marks[1]) line([-far1, x * head.subdivide[plane.second]], [far1, x * head.subdivide[plane.second]]);
      c.strokeStyle = "rgba(0, 0, 0, 0.35)";
      c.lineWidth = 0.7;
      c.stroke();
    }

    function frame(c, f, plane) {
      const [right, bottom] = [MARGIN.left + f.side, MARGIN.top + f.side];
      c.strokeStyle = "#444";
      c.lineWidth = 1;
      c.strokeRect(MARGIN.left, MARGIN.top, f.side, f.side);
      c.fillStyle = "#222";
      c.font = "12px system-ui, sans-serif";
      const { marks, top, low } = indices(f, plane);
      const every = step(low[0] - top[0], f.side / 70);
      const digits = Math.max(0, -Math.floor(Math.log10(every) + 1e-9));
      const ticks = (from, to) => {
        const result = [];
        for (let n = Math.ceil(from / every); n * every <= to; n++) result.push(n * every);
        return result;
      };
      const text = (x) => x.toFixed(digits).replace("-", "−").replace(/^−0\.?0*$/, (0).toFixed(digits));
      c.textAlign = "center";
      c.textBaseline = "top";
      for (const x of ticks(top[0], low[0])) {
        const [px] = screen(x, 0, f);
        c.fillRect(px, bottom, 1, 4);
        c.fillText(text(x), px, bottom + 6);
      }
      const [one, two] = [plane.first, plane.second].map((i) => "abc"[i]);
      c.fillText(`along ${one}* (1/Å)`, MARGIN.left + f.side / 2, bottom + 21);
      c.textAlign = "right";
      c.textBaseline = "middle";
      for (const y of ticks(low[1], top[1])) {
        const [, py] = screen(0, y, f);
        c.fillRect(MARGIN.left - 4, py, 4, 1);
        c.fillText(text(y), MARGIN.left - 7, py);
      }
      c.save();
      c.translate(8, MARGIN.top + f.side / 2);
      c.rotate(-Math.PI / 2);
      c.textAlign = "center";
      c.fillText(`normal to ${one}*, towards ${two}* (1/Å)`, 0, 0);
      c.restore();
      // Miller indices at the upper and the right edge
      c.fillStyle = "#0b5c94";
      c.textAlign = "center";
      c.textBaseline = "bottom";
      const at = plane.inverse(top[0], top[1])[1];
      for (const x of marks[0]) {
        const [px] = screen(...plane.flat(x * head.subdivide[plane.first], at), f);
        if (px < MARGIN.left || px > right) continue;
        c.fillRect(px, MARGIN.top - 4, 1, 4);
        c.fillText(String(x).replace("-", "−"), px, MARGIN.top - 6);
      }
      c.fillText(AXES[plane.first], MARGIN.left + f.side / 2, MARGIN.top - 21);
      c.textAlign = "left";
      c.textBaseline = "middle";
      for (const x of marks[1]) {
        const [, py] = screen(...plane.flat(0, x * head.subdivide[plane.second]), f);
        if (py < MARGIN.top || py > bottom) continue;
        c.fillRect(right, py, 4, 1);
        c.fillText(String(x).replace("-", "−"), right + 6, py);
      }
      c.textBaseline = "bottom";
      c.fillText(AXES[plane.second], right + 12, MARGIN.top - 6);
    }

    function bar(canvas, view, [low, high], colour) {
      const ratio = window.devicePixelRatio || 1;
      const width = canvas.clientWidth;
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(34 * ratio);
      canvas.style.height = "34px";
      const c = canvas.getContext("2d");
      c.setTransform(ratio, 0, 0, ratio, 0, 0);
        const length = width - MARGIN.left - MARGIN.right;
      for (let i = 0; i < length; i++) {
        c.fillStyle = `rgb(${colour(low + ((high - low) * i) / (length - 1)).join()})`;
        c.fillRect(MARGIN.left + i, 0, 1.5, 12);
      }
      c.strokeStyle = "#444";
      c.strokeRect(MARGIN.left, 0, length, 12);
      c.fillStyle = "#222";
      c.font = "12px system-ui, sans-serif";
      c.textBaseline = "top";
      const units = view.column === "multiplicity" ? "observations" : head.units;
      [["left", low, 0], ["right", high, 1]].forEach(([align, x, share]) => {
        c.textAlign = align;
        c.fillText(format(x, 3), MARGIN.left + share * length, 16);
      });
      c.textAlign = "center";
      c.fillText(units, MARGIN.left + length / 2, 16);
    }

    return { outline, mark, grid, frame, bar };
  }

  return Object.assign(Painter, { AXES, MARGIN, miller });
})();
