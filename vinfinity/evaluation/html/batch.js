const {names, pairs, figures} = data;
const PAGE = 24;
// which batch is compared with the first, which pair is chosen, what pairs are sorted by ("" for names), how many show
let group = 1, chosen = 0, sorted = figures.some(one => one.name === "motion.length") ? "motion.length" : "", visible = PAGE;

const byName = name => figures.find(figure => figure.name === name);
const test = figure => data.tests[group - 1][figure.name];
function difference(figure, pair) {
  const one = figure.values[0][pair], other = figure.values[group][pair];
  return one === null || other === null ? null : other - one;
}
// the pairs that have a figure, from the smallest difference to the largest
function ordered(figure) {
  const known = pairs.map((_, pair) => pair).filter(pair => difference(figure, pair) !== null);
  return known.sort((a, b) => difference(figure, a) - difference(figure, b) || a - b);
}
const signed = (value, figure) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(figure.digits);
const measured = (value, figure) => (value === null ? "-" : `${value.toFixed(figure.digits)} ${figure.unit}`.trim());

// ---- the table of tests ----

function drawTests() {
  const titles = [names[0], names[group], "difference", "95 %", "p"];
  const head = row(make("th", {scope: "col"}, ""), ...titles.map((title, number) => make("th", {scope: "col"},
    ...(number < 2 ? [swatch(number ? group : 0)] : []), title)));
  const body = make("tbody");
  for (const figure of figures) {
    const found = test(figure);
    if (!found) continue;
    const button = make("button", {type: "button", title: "Sort the pairs by it", onclick: () => sortBy(figure.name)}, figure.title);
    const line = row(make("td", {}, button, make("small", {}, figure.meaning)), ...found.cells.map(cell => make("td", {}, cell)));
    line.classList.toggle("significant", found.stands_out);
    body.append(line);
  }
  $("tests").replaceChildren(make("thead", {}, head), body);
  if (!body.children.length) $("tests").replaceChildren(make("tbody", {}, row(make("td", {}, "One pair is too few for a test."))));
}

// ---- plots ----

function plot(figure) {
  const order = ordered(figure);
  const found = test(figure), differences = order.map(pair => difference(figure, pair));
  const readout = make("span");
  const svg = make("svg", {role: "slider", tabindex: 0, "aria-valuemin": 1, "aria-valuemax": order.length,
    "aria-label": `Differences of ${figure.title}, choose a pair`});
  const title = figure.unit ? `${figure.title}, ${figure.unit}` : figure.title;
  const box = make("div", {class: "chart dots"}, make("h3", {}, title, readout), svg);
  const reach = Math.max(...differences.map(Math.abs), found ? Math.max(Math.abs(found.low), Math.abs(found.high)) : 0) || 1;
  const height = 112, bottom = 34, side = 8;
  let width = 0, dots = new Map();
  const x = value => side + (value / reach + 1) / 2 * (width - 2 * side);
  function draw() {
    width = svg.clientWidth || 400;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(make("line", {class: "axis", x1: x(0), x2: x(0), y1: 0, y2: height - 16}));
    dots = new Map();
    // dots that would cover each other are stacked around the middle
    const middle = (height - bottom) / 2, used = new Map();
    order.forEach((pair, index) => {
      const column = Math.round(x(differences[index]) / 7), count = used.get(column) || 0;
      used.set(column, count + 1);
      const shift = Math.min(middle - 5, Math.ceil(count / 2) * 7) * (count % 2 ? 1 : -1);
      const dot = make("circle", {cx: x(differences[index]).toFixed(1), cy: (middle + shift).toFixed(1), r: 3.5, class: "dot"});
      dots.set(pair, dot);
      svg.append(dot);
    });
    if (found) {
      const y = height - 26;
      svg.append(make("line", {class: "interval", x1: x(found.low), x2: x(found.high), y1: y, y2: y}));
      svg.append(make("circle", {class: "mean", cx: x(found.mean), cy: y, r: 4}));
    }
    const label = (at, anchor, text) => svg.append(make("text", {x: at, y: height - 4, "text-anchor": anchor}, text));
    const better = {low: ["← better", ""], high: ["", "better →"]}[figure.better] || ["", ""];
    label(side, "start", `−${short(reach)} ${better[0]}`.trim());
    label(x(0), "middle", "0");
    label(width - side, "end", `${better[1]} +${short(reach)}`.trim());
    update();
  }
  function update() {
    for (const [pair, dot] of dots) {
      dot.classList.toggle("now", pair === chosen);
      dot.setAttribute("r", pair === chosen ? 6 : 3.5);
    }
    const dot = dots.get(chosen);
    if (dot) svg.append(dot);
    const value = difference(figure, chosen);
    readout.textContent = value === null ? "-" : signed(value, figure);
    svg.setAttribute("aria-valuenow", order.indexOf(chosen) + 1);
    svg.setAttribute("aria-valuetext", `${pairs[chosen].name}: ${readout.textContent}`);
  }
  svg.addEventListener("pointerdown", event => {
    const at = svg.getBoundingClientRect(), from = dot => Math.hypot(event.clientX - at.left - dot.getAttribute("cx"), event.clientY - at.top - dot.getAttribute("cy"));
    choose([...dots.keys()].reduce((a, b) => (from(dots.get(b)) < from(dots.get(a)) ? b : a)));
  });
  svg.addEventListener("keydown", event => {
    const index = order.indexOf(chosen), last = order.length - 1;
    const to = {ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: last}[event.key];
    if (to !== undefined) choose(order[index < 0 ? 0 : clamp(to, 0, last)]);
    else if (event.key === "Enter") reveal(chosen);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(() => { if (svg.clientWidth !== width) draw(); }).observe(svg);
  return {box, draw, update};
}
let plots = [];
function drawPlots() {
  const equal = figures.filter(figure => pairs.every((_, pair) => !difference(figure, pair)));
  plots = figures.filter(figure => !equal.includes(figure)).map(plot);
  $("equal").textContent = equal.length ? `The same in all pairs: ${equal.map(figure => figure.title).join(", ")}.` : "";
  $("plots").replaceChildren(...plots.map(one => one.box));
  plots.forEach(one => one.draw());
}

// ---- the list of pairs ----

function listed() {
  const figure = byName(sorted), sign = Number($("order").value);
  if (!figure) return pairs.map((_, pair) => pair);
  const known = ordered(figure), rest = pairs.map((_, pair) => pair).filter(pair => difference(figure, pair) === null);
  return [...(sign > 0 ? known.reverse() : known), ...rest];
}
function values(pair) {
  const shown = [...new Set([sorted, byName(sorted)?.beside, "motion.length"])].map(byName).filter(Boolean);
  return shown.map(figure => {
    const change = difference(figure, pair);
    const texts = [0, group].map(number => measured(figure.values[number][pair], figure));
    return `${figure.title} ${texts.join(" → ")}${change === null ? "" : ` (${signed(change, figure)})`}`;
  }).join(" · ");
}
function drawPairs() {
  const order = listed(), items = order.slice(0, visible).map(pair => {
    const one = pairs[pair];
    const button = make("button", {type: "button", "aria-pressed": pair === chosen, onclick: () => choose(pair)}, one.name);
    const sheets = make("div", {class: "both"});
    for (const number of [0, group]) {
      const caption = make("figcaption", {}, swatch(number));
      caption.append(one.links[number] ? make("a", {href: one.links[number]}, names[number]) : names[number]);
      const picture = one.sheets.length ? [make("img", {src: one.sheets[number], alt: `Contact sheet of ${one.name} of ${names[number]}`})] : [];
      sheets.append(make("figure", {}, ...picture, caption));
    }
    const item = make("li", {"data-pair": pair}, make("p", {}, button, make("small", {}, ` ${one.about}`)), make("p", {class: "hint"}, values(pair)), sheets);
    item.classList.toggle("now", pair === chosen);
    return item;
  });
  $("pairs").replaceChildren(...items);
  const rest = order.length - items.length;
  $("more").hidden = rest <= 0;
  $("more").textContent = `Show ${Math.min(PAGE, rest)} more of ${rest}`;
  $("order").disabled = sorted === "";
}
function reveal(pair) {
  const place = listed().indexOf(pair);
  if (place >= visible) { visible = place + 1; drawPairs(); }
  const item = document.querySelector(`#pairs [data-pair="${pair}"]`);
  item.scrollIntoView({block: "center"});
  item.querySelector("button").focus({preventScroll: true});
}

// ---- choosing ----

function choose(pair) {
  chosen = pair;
  plots.forEach(one => one.update());
  for (const item of $("pairs").children) {
    const now = Number(item.dataset.pair) === chosen;
    item.classList.toggle("now", now);
    item.querySelector("button").setAttribute("aria-pressed", now);
  }
}
function sortBy(name) {
  sorted = name;
  visible = PAGE;
  $("sort").value = name;
  drawPairs();
}
function drawAll() {
  drawTests();
  drawPlots();
  drawPairs();
}
$("group").append(...names.slice(1).map((name, number) => make("option", {value: number + 1}, name)));
$("group").addEventListener("change", event => { group = Number(event.target.value); drawAll(); });
$("chooser").hidden = names.length < 3;
$("sort").append(make("option", {value: ""}, "name"), ...figures.map(figure => make("option", {value: figure.name}, figure.title)));
$("sort").value = sorted;
$("sort").addEventListener("change", event => sortBy(event.target.value));
$("order").addEventListener("change", drawPairs);
$("more").addEventListener("click", () => {
  const first = visible;
  visible += PAGE;
  drawPairs();
  $("pairs").children[first]?.querySelector("button").focus();
});

const bare = pairs.filter(pair => !pair.sheets.length).length;
$("left-out").textContent = bare ? `${bare} of ${pairs.length} pairs, without remarkable differences, have no contact sheets here: the page would be too large.` : "";
$("left-out").hidden = !bare;
$("fidelity").append(...data.fidelity.map(line => make("li", {}, line)));
const differing = Object.keys(data.differing);
if (differing.length) $("settings").append(columnsTable(names, differing, (key, number) => data.differing[key][number]));
else $("settings-section").hidden = true;
$("about").replaceChildren(...names.flatMap((name, number) => [...(number ? [" · "] : []), swatch(number), name]));
$("footer").textContent = `Written by vinfinity ${data.version}. The links lead to the videos.`;
drawAll();
document.documentElement.dataset.ready = "true";
