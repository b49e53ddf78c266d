"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
// what the pages of single videos and of batches share
const colours = ["var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)"];
const colour = number => colours[number % colours.length];
const $ = id => document.getElementById(id);

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "line", "path", "rect", "circle", "text", "g"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const swatch = number => make("span", {class: "swatch", style: `background:${colour(number)}`});

function row(...cells) { return make("tr", {}, ...cells); }
function short(value) {
  const size = Math.abs(value);
  return size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : size >= 1 || size === 0 ? value.toFixed(2) : value.toPrecision(2);
}

// a column for each of the names, a row for each key. value: the text of a cell
function columnsTable(names, keys, value) {
  const table = make("table"), rows = make("tbody");
  const top = row(make("th", {class: "text"}, ""));
  names.forEach((name, number) => top.append(make("th", {class: "text", scope: "col"}, ...(names.length > 1 ? [swatch(number)] : []), name)));
  table.append(make("thead", {}, top));
  for (const key of keys) rows.append(row(make("td", {}, key), ...names.map((_, number) => make("td", {class: "text"}, value(key, number)))));
  table.append(rows);
  return make("div", {class: "scroll"}, table);
}

// videos or pairs that could not be measured
$("damaged").append(...data.left_out.map(line => make("li", {}, line)));
$("damaged").hidden = !data.left_out.length;
