// A text of the reader's own: the chosen feature on it, the strongest features of each token, and what clamping changes.

const PER_TOKEN = 5, NEXT = 12;
const trial = { model: null, loading: null, ids: [], x: null, d: 0, number: -1 };

async function open_trial() {
  if (!CONSTANTS.model) return;
  trial.loading ??= block("model-data").then((buffer) => {
    trial.model = new Model(buffer);
    $("model").hidden = false;
    $("model-note").hidden = true;
    listen_to_trial();
    read_text();
  });
  await trial.loading;
  turn_trial();
}

function listen_to_trial() {
  let wait;
  $("text").addEventListener("input", () => { clearTimeout(wait); wait = setTimeout(() => { read_text(); draw_trial(); }, 200); });
  $("example").addEventListener("click", () => {
    const example = shown.page.examples[0];
    $("text").value = example ? text_of_bytes(example.tokens.flatMap((t) => bytes_of(t.text))).replace(/[\udc80-\udcff]/gu, "") : "";
    read_text();
    draw_trial();
  });
  const to = (value) => { $("value").value = $("value-number").value = value; draw_clamped(); };
  $("value").addEventListener("input", () => to($("value").value));
  $("value-number").addEventListener("input", () => { $("value").value = $("value-number").value; draw_clamped(); });
  $("ablate").addEventListener("click", () => to(0));
  $("maximum").addEventListener("click", () => to(Number(largest().toPrecision(3))));
  $("generate").addEventListener("click", generate);
}

function read_text() {
  const { model } = trial, all = model.tokenizer.encode($("text").value);
  trial.ids = all.slice(0, model.context);
  $("tokens").textContent = all.length > model.context ? `${all.length} tokens; the model reads the first ${model.context}` : `${all.length} tokens`;
  trial.x = trial.ids.length ? model.hooked(trial.ids) : new Float32Array();
  trial.d = trial.ids.length ? trial.x.length / trial.ids.length : 0;
  draw_per_token();
}

function turn_trial() {
  // Another feature: its own range of values.
  if (trial.number === shown.number) return;
  trial.number = shown.number;
  const top = largest();
  $("value").min = 0;
  $("value").max = Number((2 * top).toPrecision(3));
  $("value").step = Number((top / 50).toPrecision(2));
  $("value").value = $("value-number").value = Number(top.toPrecision(3));
  $("clamp-name").textContent = `${CONSTANTS.kind} ${trial.number}`;
  draw_trial();
}

const largest = () => features.numbers.maximum[trial.number] || 1;
const at_position = (t) => trial.x.subarray(t * trial.d, (t + 1) * trial.d);

function draw_trial() {
  const values = trial.ids.map((_, t) => trial.model.feature(at_position(t), trial.d, trial.number));
  const tried = { number: trial.number, strongest: Math.max(0, ...values), maximum: largest(), tokens: features.vocabulary.tokens(trial.ids, values) };
  $("tried").innerHTML = template.tried(CONSTANTS.kind, tried).html;
  draw_clamped();
}

function draw_per_token() {
  const rows = trial.ids.map((id, t) => {
    const f = trial.model.features(at_position(t), trial.d), strongest = top_of(f, PER_TOKEN).filter((number) => f[number] > 0);
    return { name: features.vocabulary.name(id), strongest: strongest.map((number) => ({ number, value: f[number], token: features.token(number) })) };
  });
  $("per-token").innerHTML = template.per_token(CONSTANTS.kind, rows, true).html;
}

function top_of(values, k) {
  // Places of the k largest, the largest first.
  const best = [];
  for (let i = 0; i < values.length; i++) {
    if (best.length === k && values[i] <= values[best[k - 1]]) continue;
    let at = best.length;
    while (at > 0 && values[best[at - 1]] < values[i]) at--;
    best.splice(at, 0, i);
    if (best.length > k) best.pop();
  }
  return best;
}

function draw_clamped(continued = [[], []]) {
  // The next token before and after; with the continuations where somebody asked for them.
  const { model, number } = trial, value = Number($("value-number").value), ids = prompt_ids();
  const before = softmax(model.run(ids)[0]), after = softmax(model.run(ids, model.clamp(number, value))[0]), moved = before.map((p, i) => Math.abs(after[i] - p));
  const likely = [before, after, moved].flatMap((p) => top_of(p, NEXT)), tokens = [...new Set(likely)].sort((a, b) => moved[b] - moved[a] || before[b] - before[a]).slice(0, NEXT);
  const next = tokens.map((t) => ({ token: features.vocabulary.name(t), before: before[t], after: after[t] }));
  const what = `${CONSTANTS.kind} ${number} pinned at ${decimal(value)}`, [baseline, clamped] = continued;
  $("clamped").innerHTML = template.clamped({ baseline, clamped, maximum: largest(), what, kl: divergence(before, after), next }).html;
  $("said").textContent = "";
}

const prompt_ids = () => (trial.ids.length ? trial.ids : [trial.model.tokenizer.end]);

async function generate() {
  const { model, number } = trial, ids = prompt_ids(), value = Number($("value-number").value);
  const [count, temperature, seed] = ["new-tokens", "temperature", "seed"].map((id) => Number($(id).value));
  if (ids.length >= model.context) {
    $("said").textContent = `The text fills the model's context of ${model.context} tokens: shorten it.`;
    return;
  }
  $("said").textContent = "\u2026";
  await new Promise((done) => setTimeout(done, 20)); // let that be drawn
  const texts = [undefined, model.clamp(number, value)].map((change) => {
    const all = model.generate(ids, count, Math.max(temperature, 0.01), seed, change), x = model.hooked(all), d = x.length / all.length;
    const values = all.map((_, t) => model.feature(x.subarray(t * d, (t + 1) * d), d, number));
    return features.vocabulary.tokens(all, values).map((token, i) => ({ ...token, prompt: i < ids.length }));
  });
  draw_clamped(texts);
}
