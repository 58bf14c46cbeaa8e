// The chat's page: sends without a reload, asks for news, and asks the product itself what became of each message
// (queues/tasks/ID/, by ETag). Without this script the page works by forms and links.

const list = document.getElementById("messages");
const log = document.getElementById("log");
const alerts = document.getElementById("alerts");
const said = document.getElementById("said");
const words = document.getElementById("words");
const write = document.getElementById("write");
const text = document.getElementById("text");
const read = document.getElementById("read");

// Milliseconds between two looks: while anything is open, when nothing is, and while nobody watches.
const SOON = 700, CALM = 2500, HIDDEN = 20000;
// Tasks that are asked about in one look; the others have their turn in the next ones.
const MOST = 12;
const OPEN = new Set(["queued", "delayed", "held", "running", "retrying"]);
const GONE = new Set(["dead", "failed"]);

const tags = new Map(); // address -> ETag

async function ask(url) {
  const headers = { "X-Requested-With": "fetch" }, [path] = url.split("?");
  if (tags.has(path)) headers["If-None-Match"] = tags.get(path);
  const response = await fetch(url, { headers, signal: AbortSignal.timeout(10000) });
  if (response.ok && !response.redirected && response.headers.get("ETag")) tags.set(path, response.headers.get("ETag"));
  return response;
}

// -- states -----------------------------------------------------------------------------------------------------------

function describe(way, found) {
  const parts = [words.getAttribute(`data-${way}-${found.state}`) ?? found.state];
  if (found.state === "retrying" && found.of) parts.push(`attempt ${found.attempt} of ${found.of}`);
  const left = Math.round((found.until ?? 0) - Date.now() / 1000);
  if ((found.state === "retrying" || found.state === "delayed") && left > 0) parts.push(`in ${left} s`);
  if ((found.state === "held" || found.state === "queued") && found.reason) parts.push(found.reason);
  return parts.join(", ");
}

function show(item, found) {
  item.found = found;
  item.dataset.state = found.state;
  const line = item.querySelector(".state"), said = describe(item.dataset.way, found);
  if (line.textContent !== said) line.textContent = said;
  GONE.has(found.state) ? alertOf(item, found) : alerts.querySelector(`[data-alert="${item.dataset.message}"]`)?.remove();
}

function alertOf(item, found) {
  if (alerts.querySelector(`[data-alert="${item.dataset.message}"]`)) return;
  const one = document.getElementById("alert").content.firstElementChild.cloneNode(true);
  one.dataset.alert = item.dataset.message;
  const what = describe(item.dataset.way, found);
  one.querySelector("strong").textContent = `${what[0].toUpperCase()}${what.slice(1)}:`;
  one.querySelector("button").textContent = item.dataset.way === "in" ? "Try again" : "Send again";
  one.querySelector("q").textContent = item.querySelector(".text").lastChild.textContent.slice(0, 80);
  one.querySelector(".why").textContent = found.reason ? `(${found.reason})` : "";
  const form = one.querySelector("form");
  form.action = form.getAttribute("action").replace("/0/", `/${item.dataset.message}/`);
  keepAtEnd(() => alerts.append(one));
}

let turn = 0;

async function lookAtTasks() {
  // One that is dead may be replayed by the operator, too; it is looked at as the others are.
  const open = [...list.children].filter((item) => item.dataset.task && (OPEN.has(item.dataset.state) || GONE.has(item.dataset.state)));
  const chosen = open.length > MOST ? [...open, ...open].slice(turn % open.length, (turn % open.length) + MOST) : open;
  turn += MOST;
  await Promise.all(chosen.map(async (item) => {
    const response = await ask(list.dataset.tasks.replace("ID", item.dataset.task));
    if (response.status === 304 && item.found) show(item, item.found); // the seconds go on
    else if (response.ok) show(item, await response.json());
    else if (response.status === 404) show(item, { state: "unknown" });
  }));
  return open.some((item) => OPEN.has(item.dataset.state));
}

// Who reads the newest message goes on to see it when something is added below, or an alert takes room above.
function keepAtEnd(change) {
  const isLow = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  change();
  if (isLow) log.scrollTop = log.scrollHeight;
}

// -- news -------------------------------------------------------------------------------------------------------------

function tellTime(item) {
  const time = item.querySelector("time");
  time.textContent = new Date(time.dateTime).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

function newest() {
  return list.lastElementChild?.dataset.message ?? 0;
}

async function lookForNews(after = newest()) {
  const response = await ask(`${list.dataset.news}?after=${after}`);
  if (response.redirected) return tell("The chat was started anew: reload the page.");
  if (!response.ok) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  keepAtEnd(() => {
    for (const item of [...page.querySelectorAll("#messages > li")]) {
      const old = document.getElementById(item.id);
      old ? old.replaceWith(item) : list.append(item);
      tellTime(item);
    }
  });
  for (const id of ["conversations", "head"]) {
    const old = document.getElementById(id), fresh = page.getElementById(id);
    if (old.innerHTML === fresh.innerHTML) continue;
    const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    old.replaceChildren(...fresh.childNodes);
    if (focused) old.querySelector(`a[href="${focused}"]`)?.focus();
  }
  press(page.querySelector("[data-mode]").dataset.mode);
}

async function markAsRead() {
  const unread = list.querySelector('[data-state="new"]');
  if (unread && !document.hidden && (await post(read))) await lookForNews(unread.dataset.message - 1);
}

function press(mode) {
  for (const button of document.querySelectorAll("#switch [name=mode]"))
    button.setAttribute("aria-pressed", String(button.value === mode));
}

// -- buttons ----------------------------------------------------------------------------------------------------------

async function post(form, button = null) {
  const content = new FormData(form);
  if (button?.name) content.set(button.name, button.value);
  const response = await fetch(form.action, { method: "POST", body: new URLSearchParams(content), headers: { "X-Requested-With": "fetch" } });
  tell(response.ok ? await response.text() : response.status === 403 ? "You may not do that." : `The server answered ${response.status}.`);
  return response.ok;
}

function tell(what) {
  if (!what) return;
  said.textContent = what;
  said.hidden = false;
}

document.addEventListener("submit", async (event) => {
  const form = event.target, button = event.submitter;
  if (form.action.endsWith("/people/")) return;
  event.preventDefault();
  try {
    if (!(await post(form, button))) return;
    if (form === write) {
      text.value = "";
      text.focus();
    }
    if (form.id === "switch") press(button.value);
    const alerted = form.closest("[data-alert]");
    if (alerted) {
      alerted.remove();
      text.focus();
      await lookForNews(alerted.dataset.alert - 1);
    }
    if (form === write) await lookForNews();
    again(0);
  } catch (error) {
    tell(`The server cannot be reached: ${error.message}`);
  }
});

text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (text.value.trim()) write.requestSubmit(write.querySelector(".send"));
});

// -- the clock --------------------------------------------------------------------------------------------------------

let clock = 0, looking = false, misses = 0;

function again(wait) {
  clearTimeout(clock);
  clock = setTimeout(look, wait);
}

async function look() {
  if (looking) return again(SOON);
  looking = true;
  let wait = CALM;
  try {
    await lookForNews();
    await markAsRead();
    if (await lookAtTasks()) wait = SOON;
    if (misses) tell("The server answers again.");
    misses = 0;
  } catch (error) {
    misses += 1;
    if (misses === 2) tell("The server cannot be reached; the page goes on asking.");
    wait = Math.min(CALM * 2 ** misses, 30000);
  }
  looking = false;
  again(document.hidden ? HIDDEN : wait);
}

document.addEventListener("visibilitychange", () => document.hidden || again(0));
read.hidden = true;
[...list.children].forEach(tellTime);
log.scrollTop = log.scrollHeight;
document.documentElement.dataset.ready = "";
look();
