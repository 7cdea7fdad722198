"use strict";
/* Colours that people with any kind of colour vision can tell apart: blue, white, red for what has a sign; viridis. */

diffuse.colours = (() => {
  const signed = ["053061", "2166ac", "4393c3", "92c5de", "d1e5f0", "f7f7f7", "fddbc7", "f4a582", "d6604d", "b2182b", "67001f"];
  const positive = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"];

  function table(hex) {
    const anchors = hex.map((text) => [0, 2, 4].map((i) => parseInt(text.slice(i, i + 2), 16)));
    const colours = new Uint8Array(256 * 3);
    for (let i = 0; i < 256; i++) {
      const at = (i / 255) * (anchors.length - 1);
      const first = Math.min(Math.floor(at), anchors.length - 2);
      for (let c = 0; c < 3; c++) {
        colours[3 * i + c] = Math.round(anchors[first][c] + (at - first) * (anchors[first + 1][c] - anchors[first][c]));
      }
    }
    return colours;
  }

  return { signed: table(signed), positive: table(positive), unmeasured: [204, 204, 204] };
})();
