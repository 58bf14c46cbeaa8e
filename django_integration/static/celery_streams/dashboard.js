// The dashboard's one script: figures that stay up to date, ages that go on, keys, and steps that follow one another.
// Every page works without it.
import { Idiomorph } from "./idiomorph.esm.js";

const root = document.querySelector("[data-cs]");
const FIRST_WAIT = 2000, LONGEST_WAIT = 60000, TIMEOUT = 10000;

// -- ages ---------------------------------------------------------------------------------------------------------------
const UNITS = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]];
const language = document.documentElement.lang || "en";

function age(seconds) {
  const [size, unit] = UNITS.find(([least]) => seconds >= 2 * least) || UNITS[3];
  return new Intl.NumberFormat(language, { style: "unit", unit, unitDisplay: "short" }).format(Math.floor(seconds / size));
}

function ages() {
  for (const one of root.querySelectorAll("time[data-cs-since]")) {
    const text = age(Math.max((Date.now() - Date.parse(one.dateTime)) / 1000, 0));
    if (one.textContent !== text) one.textContent = text;
  }
}

// -- figures --------------------------------------------------------------------------------------------------------------
const every = Number(root.dataset.csPoll) * 1000;
let tag = null, paused = false, wait = every, timer = 0, running = false, seen = new Date();

function say(text) {
  const state = root.querySelector("[data-cs-state]");
  if (state.textContent !== text) state.textContent = text;
}

const rules = {
  ignoreActiveValue: true,
  callbacks: {
    // What a person has opened, chosen or typed stays.
    beforeAttributeUpdated: (name, node) =>
      !(node.tagName === "DETAILS" && name === "open") &&
      !(node.tagName === "INPUT" && (name === "checked" || name === "value") && node.type !== "hidden") &&
      !(node.tagName === "TR" && name === "data-cs-here"),
  },
};

function merge(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html").querySelector("#cs-body");
  const old = document.querySelector("#cs-body");
  if (!fresh || !old) return false;
  const chosen = new Set([...old.querySelectorAll('input[name="key"]:checked')].map((box) => box.value));
  Idiomorph.morph(old, fresh, rules);
  for (const box of document.querySelectorAll('#cs-body input[name="key"]')) box.checked = chosen.has(box.value);
  showCopies();
  return true;
}

async function look() {
  clearTimeout(timer);
  if (!every || paused || document.hidden || running) return;
  running = true;
  let stop = false;
  const ends = new AbortController();
  const limit = setTimeout(() => ends.abort(), TIMEOUT);
  try {
    const headers = { "X-Requested-With": "fetch" };
    if (tag) headers["If-None-Match"] = tag;
    const reply = await fetch(location.href, { headers, signal: ends.signal, cache: "no-store", credentials: "same-origin" });
    if (reply.redirected || reply.status === 403) {
      say(root.dataset.csOut);
      stop = true;
      return;
    }
    if (reply.status !== 304) {
      if (!reply.ok && reply.status !== 503 && reply.status !== 404) throw new Error(reply.status);
      const text = await reply.text();
      if (!paused && merge(text)) tag = reply.headers.get("ETag");
    }
    seen = new Date();
    wait = every;
    say("");
  } catch (error) {
    wait = Math.min(Math.max(wait, FIRST_WAIT) * 2, LONGEST_WAIT);
    say(`${root.dataset.csAway} ${root.dataset.csStale} ${seen.toLocaleTimeString(language)}`);
  } finally {
    clearTimeout(limit);
    running = false;
    ages();
    if (!stop) timer = setTimeout(look, wait);
  }
}

// -- keys -----------------------------------------------------------------------------------------------------------------
function rows() {
  return [...root.querySelectorAll("tbody tr[data-cs-row]")];
}

function here() {
  return root.querySelector("tr[data-cs-here]");
}

function move(by) {
  const all = rows();
  if (!all.length) return;
  const old = here();
  const next = all[Math.min(Math.max(old ? all.indexOf(old) + by : 0, 0), all.length - 1)];
  if (old) delete old.dataset.csHere;
  next.dataset.csHere = "";
  next.scrollIntoView({ block: "nearest" });
  (next.querySelector("a, input, button") || next).focus();
}

function pause() {
  paused = !paused;
  const button = root.querySelector("[data-cs-pause]");
  button.setAttribute("aria-pressed", String(paused));
  if (!paused) look();
  else clearTimeout(timer);
}

const dialog = root.querySelector("[data-cs-dialog]");
const KEYS = {
  "/": () => root.querySelector("[data-cs-search]")?.focus(),
  "?": () => dialog.showModal(),
  j: () => move(1),
  k: () => move(-1),
  p: () => every && pause(),
  x: () => here()?.querySelector('input[type="checkbox"]')?.click(),
  Enter: () => here()?.querySelector("a[data-cs-open]")?.click(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || dialog.open) return;
  const typing = /^(INPUT|SELECT|TEXTAREA|BUTTON|A)$/.test(event.target.tagName) && event.target.type !== "checkbox";
  const what = KEYS[event.key];
  if (!what || (typing && (event.key === "Enter" || event.target.tagName !== "A"))) return;
  event.preventDefault();
  what();
});

// -- the rest ----------------------------------------------------------------------------------------------------------------
const COPIES = "[data-cs-copy], [data-cs-copy-of]";

function showCopies() {
  for (const one of root.querySelectorAll(COPIES)) one.hidden = false;
}

async function copy(button) {
  const shown = button.dataset.csCopy === undefined ? document.getElementById(button.dataset.csCopyOf) : button.previousElementSibling;
  try {
    await navigator.clipboard.writeText(button.dataset.csCopy ?? shown.textContent);
  } catch {
    // Without HTTPS there is no clipboard to write to, but there is the one of what is chosen.
    getSelection().selectAllChildren(shown);
    if (!document.execCommand("copy")) return;
  }
  say(root.dataset.csCopied);
}

root.addEventListener("click", (event) => {
  const button = event.target.closest(COPIES);
  if (button) copy(button);
});

showCopies();
const help = root.querySelector("[data-cs-help]");
help.hidden = false;
help.addEventListener("click", () => dialog.showModal());
if (every) {
  const button = root.querySelector("[data-cs-pause]");
  button.hidden = false;
  button.addEventListener("click", pause);
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look()));
  timer = setTimeout(look, every);
}
setInterval(() => { if (!document.hidden && !paused) ages(); }, 1000);
// A step that a person has confirmed goes on by itself; without this script by its button. Those of a search take each
// other's place, or the way back would lead on.
const step = root.querySelector("form[data-cs-go-on]");
if (step?.method === "get") location.replace(`${location.pathname}?${new URLSearchParams(new FormData(step))}`);
else step?.requestSubmit();
