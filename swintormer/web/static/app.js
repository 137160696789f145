// The list of pictures, their upload and progress, and what is done with the one that is shown.

import { Viewer } from "./viewer.js";

const BUSY = 250; // milliseconds between two questions for news while something happens
const IDLE = 20000;
const UPLOADS = 2; // at once

const $ = (id) => document.getElementById(id);
const OWN = { "x-swintormer": "1" };

const windowName = (sessionStorage.window ??= Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
  byte.toString(16).padStart(2, "0"),
).join(""));
const settings = JSON.parse(sessionStorage.settings ?? "{}"); // by picture: strength, force

let program = { models: [], formats: [], limit: Infinity };
let pictures = []; // as the server tells, and those on their way to it, in the order of their appearance
let shown = null; // id
let running = 0;
const waiting = []; // uploads
const closed = new Set(); // ids
const lines = new Map(); // elements by id
const viewer = new Viewer($("viewer"), $("canvas"), moved);

// Talking to the program

async function ask(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: body === undefined ? OWN : { ...OWN, "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error ?? `The program answers ${answer.status}.`);
  return found;
}

let timer = 0;
let asking = false;
let again = false; // ask once more, because the answer on its way may be older than what has happened
let ended = false;

async function news() {
  clearTimeout(timer);
  again = asking;
  if (asking || ended) return;
  asking = true;
  let next = IDLE;
  try {
    const told = await ask("GET", `/api/pictures?window=${windowName}`);
    $("banner").hidden = true;
    take(told.pictures.filter((picture) => picture.state !== "receiving" && !closed.has(picture.id)));
    if (pictures.some(isActive)) next = BUSY;
  } catch (error) {
    if (!ended) banner(error instanceof TypeError ? "The program does not answer: is it still running?" : error.message);
    next = 2000;
  }
  asking = false;
  timer = setTimeout(news, again ? 0 : next);
}

const isActive = (picture) => ["receiving", "opening", "waiting", "restoring"].includes(picture.state);

function take(told) {
  const known = new Map(pictures.map((picture) => [picture.id, picture]));
  const fresh = new Map(told.map((picture) => [picture.id, picture]));
  for (const picture of told) {
    const before = known.get(picture.id);
    if (before && before.state !== picture.state) announce(picture);
  }
  // Those that are still here keep their place. What the answer does not know yet is on its way, or has just arrived.
  pictures = [
    ...pictures.filter((p) => p.local || p.arrived || fresh.has(p.id)).map((p) => fresh.get(p.id) ?? p),
    ...told.filter((p) => !known.has(p.id)),
  ];
  render();
}

function announce(picture) {
  if (picture.state === "done") say(`${picture.name} is restored.`);
  if (picture.state === "failed") say(picture.error);
}

function say(text) {
  $("said").textContent = text;
}

function banner(text) {
  $("banner").textContent = text;
  $("banner").hidden = false;
}

// Pictures come

async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const found = [];
  const walk = async (entry) => {
    if (entry.name.startsWith(".")) return;
    if (entry.isFile) return void found.push(await new Promise((yes, no) => entry.file(yes, no)));
    const reader = entry.createReader();
    for (;;) {
      const inside = await new Promise((yes, no) => reader.readEntries(yes, no)); // a hundred at a time
      if (!inside.length) return;
      for (const one of inside) await walk(one);
    }
  };
  for (const entry of entries) await walk(entry);
  return found.sort((a, b) => a.name.localeCompare(b.name));
}

function add(files) {
  for (const file of files) {
    const local = { id: `local-${Math.random()}`, local: true, name: file.name, state: "receiving", share: 0, notes: [], error: "", results: {} };
    pictures.push(local);
    if (file.size > program.limit) Object.assign(local, { state: "failed", error: `${file.name} is larger than any picture that is read: see --max-pixels.` });
    else if (!file.size) Object.assign(local, { state: "failed", error: `${file.name} is empty (0 bytes): copy it again from where it came.` });
    else waiting.push([local, file]);
  }
  if (files.length) say(`${files.length} ${files.length === 1 ? "picture" : "pictures"} added.`);
  shown ??= pictures[0]?.id ?? null;
  render();
  send();
}

function send() {
  while (running < UPLOADS && waiting.length) {
    const [local, file] = waiting.shift();
    if (!pictures.includes(local)) continue;
    running++;
    upload(local, file).finally(() => {
      running--;
      send();
    });
  }
}

function upload(local, file) {
  const request = (local.request = new XMLHttpRequest()); // fetch does not tell how far it is
  const query = new URLSearchParams({ window: windowName, model: $("model").value, name: file.name });
  request.open("POST", `/api/pictures?${query}`);
  request.setRequestHeader("x-swintormer", "1");
  request.responseType = "json";
  request.upload.onprogress = (event) => {
    local.share = event.loaded / file.size;
    render();
  };
  return new Promise((done) => {
    request.onloadend = () => {
      if (request.status === 200) {
        const { id } = request.response;
        if (shown === local.id) shown = id;
        Object.assign(local, { id, local: false, arrived: true, state: "opening", share: 0 });
      } else if (pictures.includes(local)) {
        Object.assign(local, { state: "failed", error: request.response?.error ?? `${file.name} could not be sent.` });
        say(local.error);
      }
      render();
      news();
      done();
    };
    request.send(file);
  });
}

async function close(id) {
  const index = pictures.findIndex((picture) => picture.id === id);
  if (index < 0) return;
  const [picture] = pictures.splice(index, 1);
  closed.add(id);
  if (shown === id) shown = (pictures[index] ?? pictures[index - 1])?.id ?? null;
  viewer.forget(id);
  delete settings[id];
  render();
  const line = lines.get(shown);
  (line ? line.card : $("choose")).focus();
  picture.request?.abort();
  if (!picture.local) await ask("DELETE", `/api/pictures/${id}`).catch(() => {});
  news();
}

// What is seen

const current = () => pictures.find((picture) => picture.id === shown);
const of = (id) => (settings[id] ??= { strength: 100, force: false });

function remember() {
  sessionStorage.settings = JSON.stringify(settings);
}

/** The share of the restoration that is seen and downloaded. */
function strengthOf(picture) {
  const result = picture.results[picture.model];
  if (result?.needs_nothing && !of(picture.id).force) return 0;
  return of(picture.id).strength / 100;
}

function stateText(picture) {
  switch (picture.state) {
    case "receiving": return picture.share ? `Reading ${percent(picture.share)}` : "Waiting to be read";
    case "opening": return "Opening";
    case "waiting": return picture.position > 1 ? `Waiting, number ${picture.position}` : "Waiting";
    case "restoring": return picture.share === 1 ? "Finishing" : `Restoring ${percent(picture.share)}${picture.left ? `, ${duration(picture.left)} left` : ""}`;
    case "stopped": return "Stopped";
    case "failed": return picture.error;
    default: return `${picture.results[picture.model]?.needs_nothing && !of(picture.id).force ? "Needs nothing" : "Restored"}, ${picture.shown.width}×${picture.shown.height}`;
  }
}

const percent = (share) => `${Math.round(100 * share)} %`;
const duration = (s) => (s < 60 ? `${Math.max(1, Math.round(s))} s` : s < 3600 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);

function render() {
  document.body.classList.toggle("empty", !pictures.length);
  if (!pictures.some((picture) => picture.id === shown)) shown = pictures[0]?.id ?? null;
  renderList();
  renderAll();
  renderShown();
}

function renderList() {
  const ids = new Set(pictures.map((picture) => picture.id));
  for (const [id, line] of lines) {
    if (!ids.has(id)) {
      line.item.remove();
      lines.delete(id);
    }
  }
  pictures.forEach((picture, index) => {
    const line = lines.get(picture.id) ?? makeLine(picture);
    if ($("pictures").children[index] !== line.item) $("pictures").insertBefore(line.item, $("pictures").children[index] ?? null);
    line.card.className = `card ${picture.state}`;
    line.card.setAttribute("aria-current", picture.id === shown);
    if (line.name.textContent !== picture.name) line.name.textContent = line.card.title = picture.name;
    const text = stateText(picture);
    if (line.state.textContent !== text) line.state.textContent = text;
    const share = { receiving: picture.share, restoring: picture.share }[picture.state];
    line.bar.hidden = share === undefined;
    if (share !== undefined) line.bar.value = share;
    if (picture.shown && !line.thumb.src) line.thumb.src = `/api/pictures/${picture.id}/thumb`;
    line.close.setAttribute("aria-label", `Close ${picture.name}`);
  });
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function makeLine(picture) {
  const thumb = element("img", { className: "thumb", alt: "", loading: "lazy" });
  const name = element("span", { className: "name" });
  const bar = element("progress", { max: 1 });
  bar.setAttribute("aria-label", "Progress");
  const state = element("span", {});
  const card = element("button", { type: "button" }, thumb, name, element("span", { className: "state" }, state, bar));
  const cross = element("button", { type: "button", className: "close icon", textContent: "×", title: "Close (Delete)" });
  const item = element("li", {}, card, cross);
  const line = { item, card, thumb, name, state, bar, close: cross };
  const { id } = picture;
  card.addEventListener("click", () => choose(id));
  cross.addEventListener("click", () => close(id));
  lines.set(id, line);
  return line;
}

function choose(id) {
  shown = id;
  render();
  lines.get(id)?.item.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function renderAll() {
  const counted = pictures.filter((picture) => !["failed", "stopped"].includes(picture.state));
  const active = counted.filter(isActive);
  const done = counted.length - active.length;
  $("all").hidden = !active.length;
  const size = (picture) => (picture.shown ? picture.shown.width * picture.shown.height : 1e6);
  const share = (picture) => (picture.state === "done" ? 1 : picture.state === "restoring" ? picture.share : 0);
  const whole = counted.reduce((sum, picture) => sum + size(picture), 0) || 1;
  const part = counted.reduce((sum, picture) => sum + size(picture) * share(picture), 0);
  $("all-bar").value = part / whole;
  const left = secondsLeft(counted, size, share);
  $("all-text").textContent = `${done} of ${counted.length} restored${left ? `, about ${duration(left)} left` : ""}`;
  document.title = active.length ? `${percent(part / whole)} Swintormer` : "Swintormer";
  const results = pictures.filter((picture) => picture.results[picture.model]);
  $("download-all").hidden = results.length < 2;
}

/** By the speed of the picture being restored, or else of the one restored last. */
function secondsLeft(counted, size, share) {
  const pace = counted
    .map((p) => (p.left && p.share ? p.left / (1 - p.share) / size(p) : p.results[p.model] ? p.results[p.model].seconds / size(p) : 0))
    .filter(Boolean);
  if (!pace.length) return 0;
  return pace[pace.length - 1] * counted.filter(isActive).reduce((sum, p) => sum + size(p) * (1 - share(p)), 0);
}

function renderShown() {
  const picture = current();
  const result = picture?.results[picture.model];
  const strength = picture ? strengthOf(picture) : 1;
  viewer.show(
    picture?.shown ? { id: picture.id, ...picture.shown } : null,
    result ? picture.model : null,
    strength,
  );
  if (!picture) return;
  const unread = picture.state === "failed" && !picture.shown;
  $("unread").hidden = !unread;
  $("unread").textContent = unread ? picture.error : "";
  $("controls").hidden = unread;
  const nothing = Boolean(result?.needs_nothing);
  $("force-control").hidden = !nothing;
  $("force").checked = of(picture.id).force;
  $("strength").disabled = nothing && !of(picture.id).force;
  $("strength-control").classList.toggle("off", $("strength").disabled);
  $("strength").value = of(picture.id).strength;
  $("strength-value").textContent = `${of(picture.id).strength} %`;
  if ($("model").value !== picture.model && picture.model) $("model").value = picture.model;
  const purpose = program.models.find((model) => model.name === picture.model)?.purpose ?? "";
  $("purpose").textContent = purpose && `${picture.model}: ${purpose}.`;
  $("for-all").hidden = pictures.length < 2;
  // It keeps its place: the slider must not move under the pointer.
  $("for-all").style.visibility = pictures.some((other) => differs(other, picture)) ? "" : "hidden";
  $("cancel").hidden = !["waiting", "restoring"].includes(picture.state);
  $("again").hidden = !(picture.state === "stopped" || (picture.state === "failed" && picture.shown));
  $("download").disabled = !result || busy;
  const working = isActive(picture);
  $("working").hidden = !working;
  if (working) {
    $("working-text").textContent = stateText(picture);
    if (picture.state === "restoring") $("working-bar").value = picture.share;
    else $("working-bar").removeAttribute("value");
    $("working-bar").setAttribute("aria-label", `Progress of ${picture.name}`);
  }
  renderNotes(picture, nothing);
  $("viewer").setAttribute("aria-label", `${picture.name}, ${picture.described || stateText(picture)}`);
  moved();
}

const differs = (one, other) => one.shown && (of(one.id).strength !== of(other.id).strength || one.model !== other.model);

let told = ""; // by the last download of the picture that is shown

function renderNotes(picture, nothing) {
  const texts = [];
  if (picture.state === "failed" && picture.shown) texts.push(["bad", picture.error]);
  if (told.startsWith(`${picture.id} `)) texts.push(["bad", told.slice(picture.id.length + 1)]);
  if (nothing && !of(picture.id).force) texts.push(["", "This picture needs nothing: restoring it would hardly change it, so it is left as it came."]);
  for (const note of picture.notes) texts.push(["", note]);
  const key = JSON.stringify(texts);
  if ($("notes").dataset.key === key) return;
  $("notes").dataset.key = key;
  $("notes").replaceChildren(...texts.map(([kind, text]) => element("li", { className: kind, textContent: text })));
}

/** Zoom or divider have moved. */
function moved() {
  const picture = viewer.picture;
  const divided = Boolean(picture && viewer.after !== null && !viewer.peek);
  for (const id of ["handle", "divider"]) $(id).hidden = !divided;
  $("label-before").hidden = !picture || viewer.peek === "after" || (divided && viewer.divider < 0.02);
  $("label-after").hidden = !picture || viewer.after === null || viewer.peek === "before" || (divided && viewer.divider > 0.98);
  $("viewer").classList.toggle("whole", divided && !viewer.movable);
  $("zoom").hidden = !picture;
  if (!picture) return;
  $("zoom-value").textContent = `${Math.round(100 * viewer.scale)} %`;
  const handle = $("handle").style;
  const top = Math.max(0, viewer.y);
  handle.left = `${viewer.dividerAt / viewer.ratio}px`;
  handle.top = `${top / viewer.ratio}px`;
  handle.height = `${(Math.min(viewer.canvas.height, viewer.y + picture.height * viewer.scale) - top) / viewer.ratio}px`;
  const share = Math.round(100 * viewer.divider);
  if (Number($("divider").value) !== share) $("divider").value = share;
}

// What the user does

let busy = false;

function save(url, name) {
  const link = element("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

function wanted(picture) {
  const { strength, force } = of(picture.id);
  return { id: picture.id, model: picture.model, strength: strength / 100, force, format: $("format").value };
}

async function busily(work) {
  if (busy) return;
  const buttons = [$("download"), $("download-all")];
  const texts = buttons.map((button) => button.textContent);
  busy = true;
  for (const button of buttons) Object.assign(button, { disabled: true, textContent: "Preparing…" });
  try {
    await work();
  } finally {
    busy = false;
    buttons.forEach((button, index) => Object.assign(button, { disabled: false, textContent: texts[index] }));
    render();
  }
}

async function download() {
  const picture = current();
  if (!picture?.results[picture.model]) return;
  await busily(async () => {
    try {
      const { url, name, notes } = await ask("POST", `/api/pictures/${picture.id}/result`, wanted(picture));
      save(url, name);
      const fresh = notes.filter((note) => !picture.notes.includes(note));
      told = fresh.length ? `${picture.id} ${fresh.join(" ")}` : "";
      say(`${name} is downloaded.`);
    } catch (error) {
      told = `${picture.id} ${error.message}`;
      say(error.message);
    }
  });
}

async function downloadAll() {
  const ready = pictures.filter((picture) => picture.results[picture.model]);
  await busily(async () => {
    try {
      const { url, name, problems } = await ask("POST", "/api/zip", { pictures: ready.map(wanted) });
      save(url, name);
      if (problems.length) banner(problems.join(" "));
    } catch (error) {
      banner(error.message);
    }
  });
}

async function restore(picture, model) {
  if (!picture || picture.local) return;
  picture.model = model;
  await ask("POST", `/api/pictures/${picture.id}/restore`, { model }).catch((error) => banner(error.message));
  news();
}

/** Give all pictures the strength and the model of the one that is shown. */
function forAll() {
  const { id, model } = current();
  for (const picture of pictures.filter((picture) => !picture.local)) {
    of(picture.id).strength = of(id).strength;
    if (picture.model !== model) restore(picture, model);
  }
  remember();
  render();
}

function setStrength(value) {
  const picture = current();
  if (!picture || $("strength").disabled) return;
  of(picture.id).strength = Math.min(100, Math.max(0, value));
  remember();
  renderShown();
}

$("strength").addEventListener("input", () => setStrength(Number($("strength").value)));
$("force").addEventListener("change", () => {
  of(shown).force = $("force").checked;
  remember();
  render();
});
$("model").addEventListener("change", () => restore(current(), $("model").value));
$("again").addEventListener("click", () => restore(current(), $("model").value));
$("for-all").addEventListener("click", forAll);
$("cancel").addEventListener("click", async () => {
  await ask("POST", `/api/pictures/${shown}/cancel`).catch((error) => banner(error.message));
  news();
});
$("download").addEventListener("click", download);
$("download-all").addEventListener("click", downloadAll);
$("divider").addEventListener("input", () => viewer.setDivider(Number($("divider").value) / 100));
$("zoom-in").addEventListener("click", () => viewer.zoomBy(1.5));
$("zoom-out").addEventListener("click", () => viewer.zoomBy(1 / 1.5));
$("zoom-fit").addEventListener("click", () => viewer.zoomFit());
$("zoom-one").addEventListener("click", () => viewer.zoom(1));
for (const id of ["add", "choose"]) $(id).addEventListener("click", () => $("files").click());
$("files").addEventListener("change", () => {
  add([...$("files").files]);
  $("files").value = "";
});
$("sample").addEventListener("click", async () => {
  const answer = await fetch("/api/sample");
  add([new File([await answer.blob()], "sample.png")]);
});
$("help").addEventListener("click", () => $("keys").showModal());
$("quit").addEventListener("click", async () => {
  await ask("POST", "/api/quit").catch(() => {});
  ended = true;
  clearTimeout(timer);
  document.body.replaceChildren(element("p", { id: "ended", textContent: "The program has ended, and its files are removed. You may close this window." }));
});

// Dropping and pasting, anywhere in the window

let over = 0;
const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragenter", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault(); // else a drop is lost if the page changes under the pointer
  over++;
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => {
  if (hasFiles(event) && --over <= 0) leaveDrag();
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", async (event) => {
  event.preventDefault();
  leaveDrag();
  add(await filesOf(event.dataTransfer));
});
function leaveDrag() {
  over = 0;
  document.body.classList.remove("dragging");
}
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) add(files);
});

// Keys

const step = () => 0.1 * Math.min($("canvas").width, $("canvas").height);
const arrows = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function arrow(key, large) {
  const [dx, dy] = arrows[key];
  if (viewer.movable) viewer.move(dx * step(), dy * step());
  else if (dx && viewer.after !== null) viewer.setDivider(viewer.divider - (dx * (large ? 10 : 2)) / 100);
}

function neighbour(by) {
  const index = pictures.findIndex((picture) => picture.id === shown);
  const next = pictures[index + by];
  if (!next) return;
  choose(next.id);
  say(`${next.name}, ${stateText(next)}`);
}

const keys = {
  "+": () => viewer.zoomBy(1.25),
  "=": () => viewer.zoomBy(1.25),
  "-": () => viewer.zoomBy(0.8),
  0: () => viewer.zoomFit(),
  1: () => viewer.zoom(1),
  b: () => peek("before"),
  a: () => peek("after"),
  "[": () => setStrength(of(shown).strength - 5),
  "]": () => setStrength(of(shown).strength + 5),
  j: () => neighbour(1),
  k: () => neighbour(-1),
  d: download,
  Delete: () => close(shown),
  "?": () => $("keys").showModal(),
};

function peek(side) {
  viewer.peek = side;
  viewer.draw();
  moved();
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const { target } = event;
  if (target.matches("select, input[type=text]")) return;
  if (event.key in arrows && (target === $("viewer") || target === document.body) && viewer.picture) {
    arrow(event.key, event.shiftKey);
    event.preventDefault();
  } else if (shown !== null && keys[event.key]) {
    keys[event.key]();
    event.preventDefault();
  } else if (event.key === "?") keys["?"]();
});
addEventListener("keyup", (event) => {
  if (["a", "b"].includes(event.key)) peek("");
});
addEventListener("blur", () => peek(""));
addEventListener("pagehide", (event) => {
  if (!event.persisted && !ended) fetch(`/api/leave?window=${windowName}`, { method: "POST", headers: OWN, keepalive: true });
});
document.addEventListener("visibilitychange", () => document.hidden || news());

// The beginning

const option = (value, text) => element("option", { value, textContent: text });

try {
  program = await ask("GET", "/api/program");
  const brief = ({ name, purpose }) => (purpose.includes(";") ? `${name}: ${purpose.split(";")[0]}` : name);
  $("model").append(...program.models.map((model) => Object.assign(option(model.name, brief(model)), { title: model.purpose })));
  $("models").append(...program.models.flatMap(({ name, purpose }) => [element("dt", {}, name), element("dd", {}, purpose)]));
  $("format").append(option("", "As it came"), ...program.formats.map(({ name, title }) => option(name, title)));
} catch (error) {
  banner(error.message);
}
render();
news();
