const videos = data.videos;
// the video with the most time sets the clock; the others stop at their ends
const longest = videos.reduce((a, b) => (b.frames / b.fps > a.frames / a.fps ? b : a));
const rate = longest.fps, total = longest.frames;
let frame = 0, playing = false;
const watchers = [];

const seconds = at => (at / rate).toFixed(2) + " s";
// a frame of one video at the time of a frame on the clock, and back
const own = (video, at) => clamp(Math.floor((at + 0.5) / rate * video.fps), 0, video.frames - 1);
const shared = (video, at) => clamp(Math.round(at / video.fps * rate), 0, total - 1);

// ---- players ----

function bytes(base64) {
  const text = atob(base64), array = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index++) array[index] = text.charCodeAt(index);
  return array;
}

const players = videos.map((video, number) => {
  const source = $("video-" + number);
  const url = URL.createObjectURL(new Blob([bytes(source.textContent)], {type: "video/mp4"}));
  source.remove();
  const poster = video.thumbnails.length ? video.thumbnails[0].src : null;
  const player = make("video", {src: url, preload: "auto", playsinline: "", poster, tabindex: -1,
    width: video.size[0], height: video.size[1], "aria-label": video.name});
  player.muted = true;
  player.addEventListener("click", toggle);
  const caption = make("figcaption", {}, ...(videos.length > 1 ? [swatch(number)] : []));
  caption.append(video.link ? make("a", {href: video.link}, video.name) : video.name, ` · ${video.about}`);
  const figure = make("figure", {}, player, caption);
  player.addEventListener("error", () => {
    // no H.264 here: the thumbnails follow the clock
    const still = make("img", {alt: video.name, src: poster});
    watchers.push(() => {
      const now = own(video, frame);
      const near = video.thumbnails.filter(one => one.frame <= now).pop() || video.thumbnails[0];
      if (near) still.src = near.src;
    });
    player.replaceWith(still);
    caption.append(" · this browser cannot play the preview");
  });
  $("players").append(figure);
  return player;
});
$("players").classList.toggle("several", videos.length > 1);
const lead = players[videos.indexOf(longest)];

function show(at) {
  frame = clamp(at, 0, total - 1);
  $("seek").value = frame;
  $("seek").setAttribute("aria-valuetext", `frame ${frame}, ${seconds(frame)}`);
  $("clock").textContent = `frame ${frame} of ${total} · ${seconds(frame)}`;
  for (const watch of watchers) watch();
}

function seek(at) {
  show(Math.round(at));
  players.forEach((player, number) => {
    const video = videos[number];
    // the middle of the frame: rounding cannot show its neighbour
    player.currentTime = (own(video, frame) + 0.5) / video.fps;
    // a shorter video stopped when it came to its end
    if (playing && player.paused && own(video, frame) < video.frames - 1) player.play().catch(() => {});
  });
}

function toggle() {
  if (!playing && frame >= total - 1) seek(0);
  playing = !playing;
  $("play").textContent = playing ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", playing ? "Pause" : "Play");
  for (const player of players) {
    if (playing) { player.playbackRate = Number($("speed").value); player.play().catch(() => {}); } else player.pause();
  }
  if (playing) requestAnimationFrame(follow);
  else seek(frame);
}

function follow() {
  if (!playing) return;
  show(Math.floor(lead.currentTime * rate));
  for (const player of players) {
    if (player !== lead && !player.ended && Math.abs(player.currentTime - lead.currentTime) > 1.5 / rate) {
      player.currentTime = lead.currentTime;
    }
  }
  if (lead.ended) toggle();
  else requestAnimationFrame(follow);
}

$("seek").max = total - 1;
$("seek").addEventListener("input", event => seek(Number(event.target.value)));
$("play").addEventListener("click", toggle);
$("back").addEventListener("click", () => seek(frame - 1));
$("forward").addEventListener("click", () => seek(frame + 1));
$("speed").addEventListener("change", () => players.forEach(player => { player.playbackRate = Number($("speed").value); }));
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  const onButton = ["BUTTON", "SUMMARY", "A"].includes(event.target.tagName);
  const step = event.shiftKey ? Math.round(rate) : 1;
  const keys = {ArrowLeft: () => seek(frame - step), ArrowRight: () => seek(frame + step),
    Home: () => seek(0), End: () => seek(total - 1)};
  if (event.key === " " && !onButton) toggle();
  else if (keys[event.key]) keys[event.key]();
  else return;
  event.preventDefault();
});

// ---- marks ----

function marks(video) {
  const lines = video.borders.flatMap(border => border.kind.split(", ").map(kind => ({frame: border.frame, kind})));
  return [...lines, ...video.cuts.map(cut => ({frame: cut, kind: "cut"}))];
}
function drawMarks(svg, list, width, height, x) {
  for (const video of list) {
    for (const [start, stop] of video.frozen) {
      const left = x(shared(video, start)), right = x(shared(video, stop));
      svg.append(make("rect", {class: "frozen", x: left, y: 0, width: Math.max(1, right - left), height}));
    }
    for (const mark of marks(video)) {
      const at = x(shared(video, mark.frame));
      svg.append(make("line", {class: `mark ${mark.kind}`, x1: at, x2: at, y1: 0, y2: height, "vector-effect": "non-scaling-stroke"}));
    }
  }
}
$("marks").setAttribute("viewBox", "0 0 1000 10");
drawMarks($("marks"), videos, 1000, 10, at => at / Math.max(1, total - 1) * 1000);

// ---- prompts ----

const tracks = new Map(videos.map(video => [JSON.stringify([video.prompts, video.frames, video.fps]), video]));
tracks.forEach(video => {
  if (!video.prompts.length) return;
  const track = make("div", {class: "track"});
  video.prompts.forEach((prompt, index) => {
    const stop = index + 1 < video.prompts.length ? video.prompts[index + 1].frame : video.frames;
    const button = make("button", {type: "button", title: prompt.text, style: `flex: ${stop - prompt.frame} 1 0`,
      onclick: () => seek(shared(video, prompt.frame))}, prompt.text);
    watchers.push(() => {
      const now = own(video, frame);
      button.classList.toggle("now", now >= prompt.frame && now < stop);
    });
    track.append(button);
  });
  $("prompts").append(track);
});

// ---- notes and tables ----

videos.forEach((video, number) => {
  for (const note of video.notes) {
    $("notes").append(make("li", {}, ...(videos.length > 1 ? [swatch(number), `${video.name}: `] : []), note));
  }
});
if (!$("notes").children.length) $("notes-section").hidden = true;

const head = make("tr", {}, make("th", {scope: "col"}, ""));
videos.forEach((video, number) => head.append(make("th", {scope: "col"}, ...(videos.length > 1 ? [swatch(number)] : []), video.name)));
$("figures").append(make("thead", {}, head));
const body = make("tbody");
for (const figure of data.figures) {
  body.append(row(make("td", {}, figure.title, make("small", {}, figure.meaning)), ...figure.values.map(value => make("td", {}, value))));
}
if (data.fidelity.some(one => one)) {
  for (const [key, title, meaning] of [["psnr", "PSNR", "To the first video, over all frames."],
    ["ssim", "SSIM", "To the first video, mean over frames."]]) {
    const values = ["", ...data.fidelity.map(one => (one ? one[key] : "-"))];
    body.append(row(make("td", {}, title, make("small", {}, meaning)), ...values.map(value => make("td", {}, value))));
  }
}
$("figures").append(body);

const seams = videos.flatMap((video, number) => video.seams.map(seam => ({video, number, ...seam})));
if (seams.length) {
  const titles = ["frame", "", "border", "to all", "to near", "above"];
  $("seams").append(make("thead", {}, row(...titles.map((title, index) => make("th", {scope: "col", class: index === 2 ? "text" : null}, title)))));
  const rows = make("tbody");
  for (const seam of seams) {
    const button = make("button", {type: "button", onclick: () => seek(shared(seam.video, seam.frame))}, String(seam.frame));
    const number = value => (value === null ? "-" : value.toFixed(2));
    rows.append(row(make("td", {}, button), make("td", {}, videos.length > 1 ? swatch(seam.number) : ""), make("td", {class: "text"}, seam.kind),
      make("td", {}, number(seam.ratio)), make("td", {}, number(seam.local)), make("td", {}, seam.percentile.toFixed(1) + " %")));
  }
  $("seams").append(rows);
} else $("seams-section").hidden = true;

// ---- curves ----

const legend = $("legend");
videos.forEach((video, number) => { if (videos.length > 1) legend.append(make("span", {}, swatch(number), video.name)); });
const present = new Set(videos.flatMap(video => [...marks(video).map(mark => mark.kind), ...(video.frozen.length ? ["frozen"] : [])]));
const titles = {rank: "border of ranks", join: "join of an edit", given: "border that was given", prompt: "prompt", scene: "scene", cut: "cut", frozen: "frozen"};
for (const [kind, title] of Object.entries(titles)) {
  if (!present.has(kind)) continue;
  const sample = kind === "frozen" ? make("rect", {class: "frozen", width: 22, height: 12})
    : make("line", {class: `mark ${kind}`, x1: 11, x2: 11, y1: 0, y2: 12});
  legend.append(make("span", {}, make("svg", {viewBox: "0 0 22 12", "aria-hidden": "true"}, sample), title));
}

function chart(curve) {
  const drawn = videos.filter(video => video.curves[curve.name]);
  const readout = make("span");
  const svg = make("svg", {role: "slider", tabindex: 0, "aria-label": `${curve.title}, seeks the videos`, "aria-valuemin": 0, "aria-valuemax": total - 1});
  const box = make("div", {class: "chart"}, make("h3", {}, curve.title, readout), svg);
  const values = drawn.flatMap(video => video.curves[curve.name].filter(value => value !== null));
  let low = Math.min(...extent(values)), high = Math.max(...extent(values));
  if (low > 0 && low < 0.4 * high) low = 0;
  if (high - low < 1e-6) { low -= 0.5; high += 0.5; }
  let width = 0, cursor = null;
  const height = 120, left = 44, bottom = 18, top = 6;
  const x = at => left + at / Math.max(1, total - 1) * (width - left - 4);
  const y = value => height - bottom - (value - low) / (high - low) * (height - bottom - top);
  function draw() {
    width = svg.clientWidth || 400;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    drawMarks(svg, drawn, width, height - bottom, x);
    for (const value of [low, high]) {
      svg.append(make("line", {class: "grid", x1: left, x2: width - 4, y1: y(value), y2: y(value)}));
      svg.append(make("text", {x: left - 5, y: y(value) + (value === high ? 9 : 0), "text-anchor": "end"}, short(value)));
    }
    for (const [at, anchor] of [[0, "start"], [total - 1, "end"]]) {
      svg.append(make("text", {x: x(at), y: height - 5, "text-anchor": anchor}, (at / rate).toFixed(1) + " s"));
    }
    drawn.forEach(video => {
      const number = videos.indexOf(video);
      svg.append(make("path", {class: "curve", d: path(video), style: `stroke:${colour(number)}`}));
    });
    cursor = make("line", {class: "cursor", y1: 0, y2: height - bottom});
    svg.append(cursor);
    update();
  }
  function path(video) {
    const points = video.curves[curve.name];
    // no more points than pixels: of each column the lowest and the highest
    const columns = Math.max(1, Math.floor(width - left)), per = Math.max(1, points.length / columns);
    let text = "", pen = false;
    for (let start = 0; start < points.length; start += per) {
      const part = points.slice(Math.floor(start), Math.max(Math.floor(start) + 1, Math.floor(start + per)));
      const known = part.filter(value => value !== null);
      if (!known.length) { pen = false; continue; }
      const at = x(shared(video, Math.floor(start))).toFixed(1);
      for (const value of new Set([Math.min(...known), Math.max(...known)])) {
        text += `${pen ? "L" : "M"}${at} ${y(value).toFixed(1)}`;
        pen = true;
      }
    }
    return text;
  }
  function update() {
    if (cursor === null) return;
    cursor.setAttribute("x1", x(frame));
    cursor.setAttribute("x2", x(frame));
    svg.setAttribute("aria-valuenow", frame);
    const now = drawn.map(video => {
      const value = video.curves[curve.name][own(video, frame)];
      return value === null ? "–" : short(value);
    });
    readout.textContent = `${now.join(" / ")} ${curve.unit}`;
  }
  function point(event) {
    const inside = event.clientX - svg.getBoundingClientRect().left;
    seek((inside - left) / Math.max(1, width - left - 4) * (total - 1));
  }
  svg.addEventListener("pointerdown", event => { svg.setPointerCapture(event.pointerId); point(event); });
  svg.addEventListener("pointermove", event => { if (event.buttons) point(event); });
  new ResizeObserver(() => { if (svg.clientWidth !== width) draw(); }).observe(svg);
  watchers.push(update);
  $("curves").append(box);
  draw();
}
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  return values.length ? [low, high] : [0, 1];
}
data.curves.forEach(chart);

// ---- matrices ----

videos.forEach((video, number) => {
  const side = video.matrix.side, values = bytes(video.matrix.bytes);
  const canvas = make("canvas", {width: side, height: side, role: "img", "aria-label": `Similarity of moments of ${video.name}`});
  const context = canvas.getContext("2d"), image = context.createImageData(side, side);
  for (let index = 0; index < values.length; index++) {
    const value = values[index] / 255;
    image.data.set([255 * value ** 1.6, 255 * value ** 3 * 0.92, 60 + 130 * value * (1.15 - value), 255], index * 4);
  }
  context.putImageData(image, 0, 0);
  const svg = make("svg", {viewBox: `0 0 100 100`, "aria-hidden": "true"});
  const across = make("line", {class: "cursor", x1: 0, x2: 100}), down = make("line", {class: "cursor", y1: 0, y2: 100});
  svg.append(across, down);
  const box = make("div", {class: "matrix", onclick: event => {
    const inside = (event.clientX - canvas.getBoundingClientRect().left) / canvas.clientWidth;
    seek(shared(video, inside * (video.frames - 1)));
  }}, canvas, svg);
  watchers.push(() => {
    const at = own(video, frame) / Math.max(1, video.frames - 1) * 100;
    for (const name of ["y1", "y2"]) across.setAttribute(name, at);
    for (const name of ["x1", "x2"]) down.setAttribute(name, at);
  });
  const caption = make("figcaption", {}, ...(videos.length > 1 ? [swatch(number)] : []), video.name);
  $("matrices").append(make("figure", {}, box, caption));
});

// ---- contact sheets ----

videos.forEach((video, number) => {
  const sheet = make("div", {class: "sheet"});
  video.thumbnails.forEach((one, index) => {
    const stop = index + 1 < video.thumbnails.length ? video.thumbnails[index + 1].frame : video.frames;
    const button = make("button", {type: "button", onclick: () => seek(shared(video, one.frame))},
      make("img", {src: one.src, alt: `Frame ${one.frame}`}), make("span", {}, `${(one.frame / video.fps).toFixed(1)} s`));
    watchers.push(() => {
      const now = own(video, frame);
      button.classList.toggle("now", now >= one.frame && now < stop);
    });
    sheet.append(button);
  });
  const caption = make("figcaption", {}, ...(videos.length > 1 ? [swatch(number)] : []), video.name);
  $("sheets").append(make("figure", {}, sheet, ...(videos.length > 1 ? [caption] : [])));
});

// ---- settings and provenance ----

const names = videos.map(video => video.name);
const differing = Object.keys(data.differing);
if (differing.length) $("settings").append(make("p", {}, "What differs:"), columnsTable(names, differing, (key, number) => data.differing[key][number]));
const fold = (title, field) => {
  const keys = [...new Set(videos.flatMap(video => Object.keys(video[field])))];
  if (keys.length) {
    $("settings").append(make("details", {}, make("summary", {}, title), columnsTable(names, keys, (key, number) => videos[number][field][key] ?? "")));
  }
};
fold("Provenance", "provenance");
fold("All settings", "settings");
if (!$("settings").children.length) $("settings-section").hidden = true;

$("about").textContent = videos.length > 1 ? videos.map(video => video.name).join(" · ") : `${videos[0].path} · ${videos[0].about}`;
$("footer").textContent = `Written by vinfinity ${data.version}. The videos above are small copies; the links lead to the originals.`;
seek(0);
document.documentElement.dataset.ready = "true";
