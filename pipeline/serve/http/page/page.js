// The page of this server: jobs with progress, loss, log and players; a form that takes a dropped zip, folder or clips.
// Texts are put in as text, never as HTML. No library, no network but this server.
import { zipped } from "/page-zip.js";

const TRAINER = "/fal-ai/stable-audio-3-trainer";
const AUDIO = /\.(wav|flac|mp3|ogg|opus|aiff?|au|caf|w64|rf64)$/i;
const FIELDS = ["model", "number_of_steps", "rank", "adapter_type", "learning_rate", "batch_size", "duration", "seed", "trigger_phrase"];
const POLL_MS = 1000;
const by = (id) => document.getElementById(id);
const shown = new Map(); // parts of each job on the page
let zip = null; // a dropped zip, sent as it is
let clips = []; // {file, caption}

function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

async function ask(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...(key ? { Authorization: `Key ${key}` } : {}), ...options.headers };
  const answer = await fetch(path, { ...options, headers });
  by("key").hidden = answer.status !== 401;
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(body.message || answer.statusText), { detail: body.detail });
  return body;
}

// -- the form

function valueInput(name, schema) {
  const label = make("label", name.replaceAll("_", " "));
  let input;
  if (schema.enum) {
    input = make("select");
    for (const choice of schema.enum.filter((one) => one !== null)) input.append(make("option", choice));
  } else {
    const numeric = [schema.type].flat().some((type) => type === "integer" || type === "number");
    input = make("input", "", numeric ? { type: "number", step: "any", min: schema.minimum ?? "", max: schema.maximum ?? "" } : {});
    input.placeholder = schema.default === null || schema.default === undefined ? "unset" : "";
  }
  if (schema.default !== null && schema.default !== undefined) input.value = schema.default;
  input.name = name;
  label.title = schema.description;
  label.append(input);
  return label;
}

async function showFields() {
  const openapi = await (await fetch("/openapi.json")).json();
  const { properties } = openapi.components.schemas.TrainerInput;
  by("fields").replaceChildren(...FIELDS.filter((name) => properties[name]).map((name) => valueInput(name, properties[name])));
}

async function filesIn(entry, path = "") {
  if (entry.isFile) {
    const file = await new Promise((take, fail) => entry.file(take, fail));
    return [{ file, path: path + entry.name }];
  }
  const reader = entry.createReader(), found = [];
  for (;;) { // a reader gives at most a hundred at once
    const some = await new Promise((take, fail) => reader.readEntries(take, fail));
    if (!some.length) break;
    for (const one of some) found.push(...await filesIn(one, `${path}${entry.name}/`));
  }
  return found;
}

async function take(files) {
  by("wrong").replaceChildren();
  const zips = files.filter(({ path }) => /\.zip$/i.test(path));
  const audio = files.filter(({ path }) => AUDIO.test(path) && !path.split("/").pop().startsWith("._"));
  zip = zips.length === 1 && !audio.length ? zips[0].file : null;
  const texts = new Map(files.filter(({ path }) => /\.txt$/i.test(path)).map(({ path, file }) => [stem(path), file]));
  clips = zip ? [] : await Promise.all(audio.map(async ({ path, file }) => {
    const text = texts.get(stem(path));
    return { path, file, caption: text ? (await text.text()).trim() : "" };
  }));
  clips.sort((a, b) => a.path.localeCompare(b.path));
  showClips();
}

const stem = (path) => path.replace(/\.[^./]*$/, "");

function showClips() {
  const size = zip ? `${zip.name}, ${(zip.size / 1e6).toFixed(1)} MB` : `${clips.length} clip${clips.length === 1 ? "" : "s"}`;
  by("dropped").textContent = zip || clips.length ? size : "No audio was found in what was dropped.";
  by("clips").replaceChildren(...clips.map((clip) => {
    const item = make("li"), side = make("div", "", { class: "caption" });
    const caption = make("input", "", { "aria-label": `caption of ${clip.path}`, placeholder: "what is heard" });
    caption.value = clip.caption;
    caption.addEventListener("input", () => { clip.caption = caption.value; allow(); });
    const player = make("audio", "", { controls: "", preload: "none" });
    player.src = URL.createObjectURL(clip.file);
    side.append(caption, player);
    item.append(make("span", clip.path), side);
    return item;
  }));
  allow();
}

function allow() {
  const missing = clips.filter((clip) => !clip.caption.trim()).length;
  by("send").disabled = !(zip || (clips.length && !missing));
  by("missing").textContent = missing ? `${missing} of ${clips.length} clips have no caption yet` : "";
}

function put(url, blob) {
  return new Promise((done, fail) => {
    const request = new XMLHttpRequest();
    request.upload.addEventListener("progress", (event) => { by("sent").value = event.loaded / event.total; });
    request.addEventListener("load", () => (request.status === 200 ? done() : fail(new Error(`the upload failed (${request.status})`))));
    request.addEventListener("error", () => fail(new Error("the upload broke off")));
    request.open("PUT", url);
    request.send(blob);
  });
}

async function send(event) {
  event.preventDefault();
  by("wrong").replaceChildren();
  by("send").disabled = true;
  by("sent").hidden = false;
  try {
    const content = zip || await zipped(clips.flatMap(({ path, file, caption }) => [
      { name: path, blob: file }, { name: `${stem(path)}.txt`, blob: new Blob([caption.trim()]) },
    ]));
    const headers = { "content-type": "application/json" };
    const wanted = { file_name: zip ? zip.name : "clips.zip", content_type: "application/zip" };
    const begun = await ask("/storage/upload/initiate", { method: "POST", headers, body: JSON.stringify(wanted) });
    await put(new URL(begun.upload_url).pathname, content);
    const input = Object.fromEntries([...new FormData(by("form"))].filter(([, value]) => typeof value === "string" && value !== ""));
    const body = JSON.stringify({ ...input, pre_encode: true, audio_data_url: begun.file_url });
    await ask(TRAINER, { method: "POST", headers, body });
    await showJobs();
  } catch (error) {
    const entries = Array.isArray(error.detail) ? error.detail.map((one) => `${one.loc.slice(1).join(" ")}: ${one.msg}`) : [error.message];
    by("wrong").replaceChildren(...entries.map((text) => make("li", text)));
  }
  by("sent").hidden = true;
  allow();
}

// -- the jobs

function card(job) {
  const box = make("article", "", { class: "job" }), top = make("div", "", { class: "top" });
  const parts = { title: make("h3"), state: make("p", "", { class: "quiet" }), bar: make("progress", "", { max: 1 }) };
  parts.cancel = make("button", "Cancel");
  parts.cancel.addEventListener("click", async () => {
    parts.cancel.disabled = true;
    await ask(new URL(job.cancel_url).pathname, { method: "PUT" }).catch(() => {});
    showJobs();
  });
  parts.error = make("p", "", { class: "bad" });
  parts.chart = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  parts.chart.setAttribute("viewBox", "0 0 100 40");
  parts.chart.setAttribute("preserveAspectRatio", "none");
  parts.chart.setAttribute("role", "img");
  parts.line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  parts.chart.append(parts.line);
  parts.files = make("p");
  parts.details = make("details");
  parts.log = make("pre");
  parts.details.append(make("summary", "Log"), parts.log);
  parts.details.addEventListener("toggle", () => showDetails(job.id));
  const words = make("div");
  words.append(parts.title, parts.state);
  top.append(words, parts.cancel);
  box.append(top, parts.bar, parts.error, parts.chart, parts.files, parts.details);
  return { ...parts, box, ended: false };
}

function inWords(job) {
  if (job.state === "queued") return "waiting";
  if (job.state === "finished") return job.error ? "ended with an error" : `done in ${Math.max(1, Math.round(job.finished - job.started))} s`;
  if (job.cancel_requested) return "ending";
  const { stage, done, total, loss, seconds_left: left } = job.progress || {};
  if (!stage) return "beginning";
  return `${stage} ${done} of ${total}` + (loss === undefined ? "" : `, loss ${loss.toFixed(3)}`) + (left === undefined ? "" : `, ${Math.round(left)} s left`);
}

function settings({ model, number_of_steps: steps, rank, adapter_type: kind }) {
  return [model, steps && `${steps} steps`, rank && `rank ${rank}`, kind].filter(Boolean).join(", ");
}

function fileLinks(result) {
  const files = Object.values(result || {}).filter((value) => value && value.url);
  return files.map(({ url, content_type: type, file_name: name }) => {
    const path = new URL(url).pathname;
    return type.startsWith("audio/") ? make("audio", "", { controls: "", src: path }) : make("a", name, { href: path, download: name });
  });
}

function showJob(job) {
  const is_new = !shown.has(job.id);
  if (is_new) shown.set(job.id, card(job));
  const parts = shown.get(job.id);
  parts.title.textContent = job.input.prompt || settings(job.input) || "training";
  parts.state.textContent = `${inWords(job)} · ${new Date(job.created * 1000).toLocaleString()}`;
  parts.bar.hidden = job.state !== "running";
  if (job.progress) parts.bar.value = job.progress.done / Math.max(1, job.progress.total);
  else parts.bar.removeAttribute("value");
  parts.cancel.hidden = job.state === "finished";
  parts.error.textContent = job.error || "";
  parts.error.hidden = !job.error;
  if (!parts.ended && job.state === "finished") parts.files.replaceChildren(...fileLinks(job.result).flatMap((link) => [link, " "]));
  if (!parts.ended) showDetails(job.id);
  parts.ended = job.state === "finished";
  return parts.box;
}

async function showDetails(id) {
  const parts = shown.get(id);
  const job = await ask(`/jobs/${id}`).catch(() => null);
  if (!job) return;
  const losses = job.losses.map(([, loss]) => loss), most = Math.max(...losses), least = Math.min(...losses);
  parts.chart.toggleAttribute("hidden", losses.length < 2);
  parts.chart.setAttribute("aria-label", `loss from ${losses[0]?.toFixed(3)} to ${losses.at(-1)?.toFixed(3)}`);
  const last = Math.max(1, losses.length - 1), span = most - least || 1;
  parts.line.setAttribute("points", losses.map((loss, at) => `${(100 * at) / last},${38 - (36 * (loss - least)) / span}`).join(" "));
  if (parts.details.open) parts.log.textContent = job.logs.map((line) => line.message).join("\n");
}

async function showJobs() {
  try {
    const { jobs } = await ask("/jobs");
    by("none").hidden = jobs.length > 0;
    const boxes = jobs.map(showJob);
    const list = by("jobs");
    if (boxes.some((box, at) => list.children[at] !== box)) list.replaceChildren(...boxes);
    const busy = jobs.filter((job) => job.state !== "finished").length;
    by("health").textContent = busy ? `${busy} at work or waiting` : "ready";
  } catch (error) {
    by("health").textContent = by("key").hidden ? "the server does not answer" : "a key is needed";
  }
}

by("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", by("key-text").value.trim());
  by("key-text").value = "";
  showJobs();
});
by("form").addEventListener("submit", send);
by("files").addEventListener("change", (event) => take([...event.target.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }))));
const drop = by("drop");
for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") by("files").click(); });
drop.addEventListener("drop", async (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = entries.length ? (await Promise.all(entries.map((entry) => filesIn(entry)))).flat() : [...event.dataTransfer.files].map((file) => ({ file, path: file.name }));
  take(files);
});
showFields();
showJobs();
setInterval(() => { if (!document.hidden) showJobs(); }, POLL_MS);
