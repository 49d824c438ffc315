// What stands beside the picture: classes, the list of detections, times and cards. Text enters as text only.

/** An element with properties and children (elements or text). */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A square in the color of a class. */
function swatch(color) {
  const made = element("span", { className: "swatch" });
  made.style.backgroundColor = color;
  made.setAttribute("aria-hidden", "true");
  return made;
}

/** Fill a select with names; `first` is [value, text] of an entry before them. */
export function fillSelect(select, names, chosen, first) {
  const entries = names.map((name) => new Option(name, name, false, name === chosen));
  if (first) entries.unshift(new Option(first[1], first[0], false, chosen === first[0]));
  select.replaceChildren(...entries);
}

/** Checkboxes of classes: [{ name, color, count, on }]. `changed(name, on)` is called at a click. */
export function showClasses(place, classes, changed) {
  const there = new Map([...place.children].map((row) => [row.dataset.name, row]));
  const rows = classes.map(({ name, color, count, on }) => {
    const row = there.get(name) ?? classRow(name, changed); // kept where it is there: it may have the focus
    row.querySelector("input").checked = on;
    row.querySelector(".swatch").style.backgroundColor = color;
    row.querySelector(".number").textContent = count;
    return row;
  });
  if (rows.length !== place.children.length || rows.some((row, i) => row !== place.children[i])) {
    place.replaceChildren(...rows);
  }
}

function classRow(name, changed) {
  const box = element("input", { type: "checkbox" });
  box.addEventListener("change", () => changed(name, box.checked));
  const row = element("label", { className: "check" }, box, swatch("transparent"), element("span", {}, name),
    element("span", { className: "number" }));
  row.dataset.name = name;
  return row;
}

/** The rows of the list: [{ side, left, right }], `color(name)`, and which of them is selected (-1: none).
 * sides: what is written for left, right and both; null without a comparison. */
export function showList(list, rows, color, selected, sides) {
  list.replaceChildren(...rows.map((row, number) => {
    const { name, box_xyxy: box } = row.left ?? row.right;
    const scores = [row.left, row.right].filter(Boolean).map((one) => one.score.toFixed(3)).join(" / ");
    const item = element("li", { id: `detection-${number}`, className: row.side },
      swatch(color(name)), element("span", { className: "name" }, name),
      element("span", { className: "number" }, scores),
      element("span", { className: "box number" }, box.map((value) => value.toFixed(1)).join(", ")));
    if (sides) item.append(element("span", { className: "side" }, sides[row.side]));
    item.setAttribute("role", "option");
    return item;
  }));
  markSelected(list, selected);
}

/** Show which row of the list is selected. */
export function markSelected(list, selected) {
  [...list.children].forEach((item, number) => item.setAttribute("aria-selected", String(number === selected)));
  const item = list.children[selected];
  if (!item) {
    list.removeAttribute("aria-activedescendant");
    return;
  }
  list.setAttribute("aria-activedescendant", item.id);
  const above = item.offsetTop - list.scrollTop, below = above + item.offsetHeight - list.clientHeight;
  if (above < 0) list.scrollTop += above; // not scrollIntoView: it would move the page, too
  else if (below > 0) list.scrollTop += below;
}

/** A row of times for each answer, in milliseconds. */
export function showTimes(table, answers) {
  table.hidden = !answers.length;
  table.tBodies[0].replaceChildren(...answers.map((answer) => {
    const { decode, queue, inference } = answer.time_ms;
    const cells = [decode, queue, inference, answer.answer_ms, answer.roundTrip].map((value) => value.toFixed(1));
    const head = element("th", { scope: "row" }, answer.model);
    return element("tr", {}, head, ...cells.map((text) => element("td", { className: "number" }, text)));
  }));
}

function percent(value) {
  return typeof value === "number" ? value.toFixed(2) : "not measured";
}

/** What verified a model's accuracy, in lines. */
function verified({ verification: check = {} }) {
  if (!Object.keys(check).length) return ["not verified: the card has no verification"];
  const lines = [];
  if (typeof check.passed === "boolean") {
    const of = typeof check.reference_map === "number" ? `, reference mAP ${percent(check.reference_map)}` : "";
    const within = typeof check.tolerance === "number" ? `, tolerance ${check.tolerance}` : "";
    lines.push(`${check.passed ? "passed" : "FAILED"}${of}${within}`);
  }
  for (const one of Array.isArray(check.backends) ? check.backends : []) {
    const result = one.scored ? `${one.passed ? "passed" : "FAILED"}, mAP ${percent(one.map)}` : one.status ?? "";
    lines.push(`${one.backend ?? "?"} on ${one.device ?? "?"}: ${result}`);
  }
  return lines;
}

function facts(model) {
  const { card } = model;
  const own = Object.entries(card.thresholds ?? {}).map(([name, score]) => `${name} ${score.toFixed(3)}`);
  const [height, width] = model.input_size_hw;
  const map = percent(card.metrics?.map);
  return [
    ["File", [`${model.file} (${model.kind})`]],
    ["Graph", [model.graph]],
    ["Precision", [model.precision]],
    ["Input", [`${width} x ${height} pixels (width x height)`]],
    ["Classes", [`${model.classes.length}: ${model.classes.join(", ")}`]],
    ["Threshold", [`${card.threshold} over all classes; the graph keeps scores from ${card.score_threshold}`,
      ...(own.length ? [own.join(", ")] : [])]],
    ["mAP", [map, ...(card.metrics?.measured_by ? [card.metrics.measured_by] : [])]],
    ["Verified", verified(card)],
    ["Runs on", [model.runs_on]],
    ["Loaded", [`${model.loaded}${model.reloads ? `, reloaded ${model.reloads} times` : ""}`]],
    ...(model.reload_error ? [["Reload failed", [model.reload_error]]] : []),
  ];
}

/** The cards of models, readable. One that was open stays open. */
export function showCards(place, models) {
  const open = new Set([...place.querySelectorAll("details[open]")].map((card) => card.dataset.name));
  place.replaceChildren(...models.map((model) => {
    const list = element("dl");
    for (const [name, lines] of facts(model)) {
      list.append(element("dt", {}, name), ...lines.map((line) => element("dd", {}, line)));
    }
    const card = element("details", { open: open.has(model.name) },
      element("summary", {}, `The card of ${model.name}`), list);
    card.dataset.name = model.name;
    return card;
  }));
}
