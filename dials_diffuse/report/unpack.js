"use strict";
/* Data of the page: JSON, and what is packed with zlib and base64. */

const diffuse = { browsers: {}, ready: null };
window.diffuse = diffuse; // tests and curious people look here

diffuse.json = (id) => JSON.parse(document.getElementById(id).textContent);

/* Bytes of an element; a promise. */
diffuse.unpack = async (id) => {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old to unpack the data of the page");
  const text = atob(document.getElementById(id).textContent.trim());
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};

/* An element with attributes, text as text, and children. */
diffuse.element = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
};

diffuse.format = (x, digits = 4) => {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (typeof x !== "number") return String(x);
  const size = Math.abs(x);
  const text = size && (size >= 1e6 || size < 1e-3) ? x.toExponential(digits - 1) : String(Number(x.toPrecision(digits)));
  return text.replace("-", "−");
};
