// Draws how each layer's two branches were mixed for an answer.

import { make } from "./text.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 72;

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const percent = (share) => `${Math.round(share * 100)} %`;

/** Name a layer shortly: its number, and the norm's name where a layer has several. */
function short(name) {
  const number = name.match(/\.(\d+)\./)?.[1];
  const leaf = name.split(".").pop().replaceAll("_", " ");
  return number === undefined ? leaf : `${number} ${leaf}`;
}

/**
 * Make the chart of an answer's route.
 *
 * A bar a layer: how much of it is the first branch. A tick shows where the other route's bar ends.
 */
export function routingChart(layers, route) {
  const other = route === "image" ? "text" : "image";
  const shares = layers.map((layer) => layer[route][0]);
  const step = 100 / layers.length;
  const bars = layers.map((layer, index) => {
    const x = index * step + step * 0.12;
    const width = step * 0.76;
    const height = (share) => share * HEIGHT;
    const place = { x, width };
    const told = `${short(layer.layer)}: ${percent(layer[route][0])}, ${other} ${percent(layer[other][0])}`;
    return draw("g", {},
      draw("title", {}, told),
      draw("rect", { ...place, class: "back", y: 0, height: HEIGHT }),
      draw("rect", { ...place, class: "bar", y: HEIGHT - height(layer[route][0]), height: height(layer[route][0]) }),
      draw("rect", { ...place, class: "tick", y: HEIGHT - height(layer[other][0]) - 0.75, height: 1.5 }));
  });
  const label = summary(layers, shares, route, other);
  const chart = draw("svg",
    { viewBox: `0 0 100 ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    ...bars);
  const key = (kind, words) => make("span", {}, make("span", { className: `key ${kind}` }), words);
  const caption = make("figcaption", {},
    key("bar", `first branch, ${route} route`),
    key("back", "second branch"),
    key("tick", `where the ${other} route divides them`));
  const ends = make("p", { className: "ends", "aria-hidden": "true" },
    make("span", {}, short(layers[0].layer)), make("span", {}, short(layers.at(-1).layer)));
  return make("figure", { className: "routing" }, chart, ends, caption, table(layers));
}

function summary(layers, shares, route, other) {
  const lowest = shares.indexOf(Math.min(...shares));
  const highest = shares.indexOf(Math.max(...shares));
  const gaps = layers.map((layer) => Math.abs(layer[route][0] - layer[other][0]));
  const widest = gaps.indexOf(Math.max(...gaps));
  return `Share of the first branch in ${layers.length} layers, ${route} route: ` +
    `from ${percent(shares[lowest])} in ${short(layers[lowest].layer)} ` +
    `to ${percent(shares[highest])} in ${short(layers[highest].layer)}. ` +
    `It differs most from the ${other} route in ${short(layers[widest].layer)}, ` +
    `by ${percent(gaps[widest])}.`;
}

function table(layers) {
  const row = (cells, tag) => make("tr", {}, ...cells.map((cell, index) =>
    make(index ? tag : "th", { scope: tag === "th" ? "col" : "row" }, cell)));
  const rows = layers.map((layer) =>
    row([short(layer.layer), percent(layer.text[0]), percent(layer.image[0])], "td"));
  const whole = make("table", {},
    make("caption", {}, "Share of the first branch"),
    make("thead", {}, row(["Layer", "Text route", "Image route"], "th")),
    make("tbody", {}, ...rows));
  return make("details", { className: "as-table" }, make("summary", {}, "As a table"), whole);
}
