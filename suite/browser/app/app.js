// List, search and turning pages. The address says what is shown: #feature=123, and &view=try or list for the other parts.

const $ = (id) => document.getElementById(id);
const shown = { number: -1, matches: [], busy: 0 };
let features;

async function start() {
  if (typeof DecompressionStream === "undefined") {
    $("page").textContent = "This browser is too old for this page: it needs DecompressionStream (Chrome or Edge 80, Firefox 113, Safari 16.4).";
    return;
  }
  features = await Features.open();
  for (const [name, column] of CONSTANTS.sorts) $("sort").append(new Option(name, column));
  $("sort").value = "density";
  draw_heads();
  await search();
  await follow_address();
  listen();
  document.documentElement.dataset.ready = "yes";
  globalThis.sae = { features, template, filters, plain, Vocabulary, matches, parse_query, trial, go }; // for the console, and the tests
}

function listen() {
  addEventListener("hashchange", follow_address);
  let wait;
  $("query").addEventListener("input", () => { clearTimeout(wait); wait = setTimeout(() => search(true), 120); });
  $("query").addEventListener("keydown", (e) => { if (e.key === "Enter" && shown.matches.length) go(shown.matches[0], "feature"); });
  $("sort").addEventListener("change", () => search());
  $("direction").addEventListener("click", () => { set_direction($("direction").dataset.descending !== "yes"); search(); });
  $("help").addEventListener("click", () => { $("help-text").hidden = !$("help-text").hidden; $("help").setAttribute("aria-expanded", String(!$("help-text").hidden)); });
  $("rows").addEventListener("scroll", draw_rows, { passive: true });
  new ResizeObserver(draw_rows).observe($("rows"));
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("random").addEventListener("click", draw_one);
  for (const a of document.querySelectorAll("a[data-view]")) a.addEventListener("click", (e) => { e.preventDefault(); go(shown.number, a.dataset.view); });
  $("try").addEventListener("click", (e) => { // a feature named beside the text: stay with the text
    const link = e.target.closest('a[href^="#feature="]');
    if (link) { e.preventDefault(); go(address(link.hash).number, "try"); }
  });
  document.addEventListener("keydown", keys);
  document.addEventListener("click", tell);
}

// --- address ---

function address(hash = location.hash) {
  const given = new URLSearchParams(hash.slice(1)), number = /^\d+$/.test(given.get("feature") ?? "") ? Number(given.get("feature")) : -1;
  const view = ["list", "feature", "try"].includes(given.get("view")) ? given.get("view") : number >= 0 ? "feature" : "list";
  return { number: number < features.count ? number : -1, view };
}

function go(number, view) {
  location.hash = (number >= 0 ? `feature=${number}` : "") + (view === "feature" && number >= 0 ? "" : `&view=${view}`);
}

async function follow_address() {
  const { number, view } = address();
  document.body.dataset.view = view;
  for (const a of document.querySelectorAll("nav a")) a.toggleAttribute("aria-current", a.dataset.view === view);
  await show(number >= 0 ? number : shown.number >= 0 ? shown.number : (shown.matches[0] ?? -1));
  if (view === "try") await open_trial();
}

// --- the page ---

async function show(number) {
  if (number === shown.number) return;
  shown.number = number;
  const page = number >= 0 ? await features.page(number) : null;
  if (number !== shown.number) return; // another was asked for meanwhile
  if (page === null) $("page").textContent = "Nothing matches.";
  else $("page").innerHTML = template.page(CONSTANTS.kind, page, true).html; // what the template makes is escaped
  shown.page = page;
  document.title = number >= 0 ? `${CONSTANTS.kind} ${number} - ${CONSTANTS.title}` : CONSTANTS.title;
  $("feature").scrollTop = 0;
  if (innerWidth < 820) scrollTo(0, 0);
  reveal();
  draw_rows();
}

function step(by) {
  const at = shown.matches.indexOf(shown.number), n = shown.matches.length;
  if (n) go(shown.matches[at < 0 ? 0 : (at + by + n) % n], current_view());
}

function draw_one() {
  const alive = shown.matches.filter((i) => features.numbers.n_active[i] > 0), pool = alive.length ? alive : shown.matches;
  const others = pool.filter((i) => i !== shown.number), from = others.length ? others : pool;
  if (from.length) go(from[Math.floor(Math.random() * from.length)], current_view());
}

const current_view = () => (document.body.dataset.view === "try" ? "try" : "feature");

// --- the list ---

function set_direction(descending) {
  $("direction").dataset.descending = descending ? "yes" : "no";
  $("direction").textContent = descending ? "largest first" : "smallest first";
}

async function search(to_first = false) {
  const turn = ++shown.busy, query = $("query").value;
  const found = await matches(features, query, $("sort").value, $("direction").dataset.descending === "yes", () => { $("count").textContent = "reading all texts\u2026"; });
  if (turn !== shown.busy) return; // typed on meanwhile
  shown.matches = found;
  const all = `${decimal(features.count)} ${CONSTANTS.kind}s`;
  $("count").textContent = found.length === features.count ? all : found.length ? `${decimal(found.length)} of ${all}` : `none of ${all}`;
  for (const id of ["previous", "next", "random"]) $(id).disabled = found.length === 0;
  $("rows").scrollTop = 0;
  if (to_first && found.length) { // the best match at once; the address follows when somebody chooses
    await show(found[0]);
    history.replaceState(null, "", `#feature=${found[0]}${document.body.dataset.view === "feature" ? "" : `&view=${document.body.dataset.view}`}`);
  }
  reveal();
  draw_rows();
}

const COLUMNS = [
  ["density", "density", percent],
  ["maximum", "maximum", decimal],
  ["auroc", "AUROC", decimal],
];

function draw_heads() {
  const columns = COLUMNS.filter(([column]) => features.numbers[column]);
  $("list").style.setProperty("--columns", columns.length);
  $("heads").replaceChildren(...[CONSTANTS.kind, "strongest on", ...columns.map(([, name]) => name)].map((text) => cell(text)));
}

const row_height = () => parseFloat(getComputedStyle($("rows")).getPropertyValue("--row"));

function draw_rows() {
  // Only the rows in sight exist.
  const height = row_height(), box = $("rows"), n = shown.matches.length;
  $("spacer").style.height = `${n * height}px`;
  const first = Math.max(0, Math.floor(box.scrollTop / height) - 6), last = Math.min(n, Math.ceil((box.scrollTop + box.clientHeight) / height) + 6);
  $("spacer").replaceChildren(...shown.matches.slice(first, last).map((number, i) => row(number, first + i, height)));
  if (shown.number >= 0) box.setAttribute("aria-activedescendant", `row-${shown.number}`);
}

function row(number, at, height) {
  const element = document.createElement("div"), token = features.token(number);
  element.className = "feature-row";
  element.id = `row-${number}`;
  element.style.top = `${at * height}px`;
  element.setAttribute("role", "option");
  element.setAttribute("aria-selected", String(number === shown.number));
  element.setAttribute("aria-posinset", at + 1);
  element.setAttribute("aria-setsize", shown.matches.length);
  const values = COLUMNS.filter(([column]) => features.numbers[column]).map(([column, , format]) => cell(features.numbers[column][number] === null ? "" : format(features.numbers[column][number])));
  element.append(cell(number), cell(token || "dead", token ? "token" : "dead"), ...values);
  element.addEventListener("click", () => go(number, innerWidth < 820 ? "feature" : current_view()));
  return element;
}

function cell(text, name = "") {
  const element = document.createElement("bdi");
  element.textContent = text;
  element.className = name;
  return element;
}

function reveal() {
  // Scroll the list to the feature shown.
  const at = shown.matches.indexOf(shown.number), height = row_height(), box = $("rows");
  if (at < 0 || !box.clientHeight) return;
  if (at * height < box.scrollTop || (at + 1) * height > box.scrollTop + box.clientHeight) box.scrollTop = (at + 0.5) * height - box.clientHeight / 2;
}

// --- keys and hover ---

function keys(e) {
  if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest("input, textarea, select")) {
    if (e.key === "Escape") e.target.blur();
    return;
  }
  const in_list = document.activeElement === $("rows");
  const act = { "/": () => $("query").focus(), ArrowRight: () => step(1), j: () => step(1), ArrowLeft: () => step(-1), k: () => step(-1), r: draw_one }[e.key] ??
    (in_list ? { ArrowDown: () => step(1), ArrowUp: () => step(-1), Enter: () => go(shown.number, "feature") }[e.key] : undefined);
  if (!act) return;
  e.preventDefault();
  act();
}

function tell(e) {
  // A tap shows what a pointer held over it would: a phone has no hover.
  const named = e.target.closest("[title]"), bubble = $("bubble");
  bubble.hidden = !(named && named.closest("#page, #try") && matchMedia("(hover: none)").matches);
  if (bubble.hidden) return;
  bubble.textContent = named.getAttribute("title");
  const { left, bottom } = named.getBoundingClientRect();
  bubble.style.top = `${bottom + scrollY + 4}px`;
  bubble.style.left = `${Math.max(8, Math.min(left, innerWidth - bubble.offsetWidth - 8))}px`;
}
