"use strict";
/* The voxels of a map: where the symmetry finds each of them, what its value is, and where it lies in a plane. */

diffuse.lattice = (() => {
  const add = (a, b) => a.map((x, i) => x + b[i]);
  const times = (a, k) => a.map((x) => x * k);
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const length = (a) => Math.sqrt(dot(a, a));

  /* head: see Browser in slices.py; codes: name of a column -> typed array */
  function Lattice(head, codes) {
    const [n1, n2, n3] = head.shape;
    const low = head.low;
    const steps = [0, 1, 2].map((i) => times(head.matrix.map((row) => row[i]), 1 / head.subdivide[i]));
    const masks = codes[Object.keys(head.columns)[0]];

    const s = (index) => add(add(times(steps[0], index[0]), times(steps[1], index[1])), times(steps[2], index[2]));

    /* Place of a voxel in the box of the asymmetric unit, -1 if it is not in the unit. */
    function own(h, k, l) {
      const i = h - low[0], j = k - low[1], m = l - low[2];
      if (i < 0 || j < 0 || m < 0 || i >= n1 || j >= n2 || m >= n3) return -1;
      const place = (i * n2 + j) * n3 + m;
      return masks[place] ? place : -1;
    }

    /* Place of the symmetry mate in the asymmetric unit, -1 for a voxel outside the limits of resolution. */
    function place(h, k, l) {
      for (const r of head.operators) {
        const at = own(
          h * r[0][0] + k * r[1][0] + l * r[2][0],
          h * r[0][1] + k * r[1][1] + l * r[2][1],
          h * r[0][2] + k * r[1][2] + l * r[2][2]
        );
        if (at >= 0) return at;
      }
      return -1;
    }

    /* Value of a column at a place, NaN where there is none; size: |s| of the voxel, where the isotropic part is added. */
    function value(name, at, size = null) {
      const column = head.columns[name];
      if (at < 0 || masks[at] < 2) return NaN;
      let where = at;
      if (column.stride > 1) {
        const e = column.stride, [, c2, c3] = column.shape;
        const i = Math.floor(at / (n2 * n3)), j = Math.floor(at / n3) % n2, m = at % n3;
        where = (Math.floor(i / e) * c2 + Math.floor(j / e)) * c3 + Math.floor(m / e);
      }
      const code = codes[name][where];
      if (code < 2) return NaN;
      const part = column.width * Math.sinh(column.step * (code - column.zero));
      return size === null ? part : part + isotropic(column.isotropic, size);
    }

    function isotropic(lines, size) {
      let first = 0, last = lines.limits.length;
      while (first < last) {
        const half = (first + last) >> 1;
        if (lines.limits[half] < size) first = half + 1;
        else last = half;
      }
      return lines.offset[first] + lines.slope[first] * size;
    }

    /* A plane with one constant index: axes in it, and Cartesian coordinates with x along the first. */
    function plane(axis, layer) {
      const [first, second] = [0, 1, 2].filter((i) => i !== axis);
      const e1 = times(steps[first], 1 / length(steps[first]));
      const rest = add(steps[second], times(e1, -dot(steps[second], e1)));
      const e2 = times(rest, 1 / length(rest));
      const index = (i, j) => {
        const all = [0, 0, 0];
        all[axis] = layer;
        all[first] = i;
        all[second] = j;
        return all;
      };
      const flat = (i, j) => {
        const v = s(index(i, j));
        return [dot(v, e1), dot(v, e2)];
      };
      const origin = flat(0, 0);
      const a = [dot(steps[first], e1), 0];
      const b = [dot(steps[second], e1), dot(steps[second], e2)];
      /* place in the plane to indices, which need not be whole */
      const inverse = (x, y) => {
        const j = (y - origin[1]) / b[1];
        return [(x - origin[0] - j * b[0]) / a[0], j];
      };
      const m1 = head.extent[first], m2 = head.extent[second];
      const places = new Int32Array((2 * m1 + 1) * (2 * m2 + 1)).fill(-1);
      const inside = new Uint8Array(places.length);
      const limit = (1 / head.d_min) * (1 + 1e-9);
      for (let j = -m2, at = 0; j <= m2; j++) {
        for (let i = -m1; i <= m1; i++, at++) {
          const v = index(i, j);
          if (length(s(v)) > limit) continue;
          places[at] = place(v[0], v[1], v[2]);
          inside[at] = own(v[0], v[1], v[2]) >= 0 ? 1 : 0;
        }
      }
      return { axis, layer, first, second, m1, m2, origin, a, b, index, flat, inverse, places, inside };
    }

    return { head, s, size: (index) => length(s(index)), place, value, plane };
  }

  return Lattice;
})();
