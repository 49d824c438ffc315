// The page: what is chosen, what is asked, what is shown.

import { ServerError, detect, listModels, readModel, useKey } from "./api.js";
import { compare, reaches, recommended } from "./compare.js";
import { classColor, draw } from "./draw.js";
import { Camera, Clip, SourceError, decoded, fromFile } from "./sources.js";
import { element, fillSelect, markSelected, showCards, showClasses, showList, showTimes } from "./view.js";

const at = (id) => document.getElementById(id);
const SIDES = ["left", "right"];
const state = {
  models: new Map(), // by name, with their cards
  left: "", right: "", // names; right: "" without a comparison
  picture: null, wanted: null, // the one that is shown, and the one that was asked for last
  threshold: null, // null: as each model recommends
  off: new Set(), // classes that are not shown
  classes: [], rows: [], selected: -1, // names that have a color; the list
  player: null, // a clip or a camera
};
const strip = new Map(); // pictures that were chosen together, with their buttons
let asked = new AbortController(); // of the requests for the picture that is wanted
let taken = 0; // choices of files and of the camera: a video that opens late does not replace a later one
let frames = 0; // that were asked of players: an older one is not shown

// Models and errors

async function loadModels() {
  const listed = await listModels();
  const models = await Promise.all(listed.map((model) => readModel(model.name)));
  state.models = new Map(models.map((model) => [model.name, model]));
  const names = [...state.models.keys()];
  if (!names.includes(state.left)) state.left = names[0];
  if (!names.includes(state.right)) state.right = "";
  fillSelect(at("left"), names, state.left);
  fillSelect(at("right"), names, state.right, ["", "no other"]);
  at("right-field").hidden = names.length < 2;
  at("key-form").hidden = true;
  showCards(at("cards"), shownModels());
  render();
}

function shownModels() {
  const names = new Set(SIDES.map((side) => state[side])); // the same on both sides is one
  return [...names].map((name) => state.models.get(name)).filter(Boolean);
}

function clearError() {
  at("error").hidden = true;
  at("error").textContent = "";
}

/** Say what went wrong where the user looks. What is nobody's fault but the page's goes on to the console, too. */
function showError(error) {
  if (error.name === "AbortError") return; // another picture was chosen meanwhile
  const known = error instanceof ServerError || error instanceof SourceError;
  if (error.status === 401) {
    at("key-form").hidden = false;
    at("key-reason").textContent = error.message;
    at("key").focus();
    return;
  }
  const status = error.status ? ` (${error.status})` : "";
  at("error").textContent = known ? `${error.message}${status}` : `The page failed: ${error.message}`;
  at("error").hidden = false;
  if (!known) throw error;
}

let toAnnounce;
function announce(text) {
  clearTimeout(toAnnounce); // a slider that moves would say every step
  if (state.player?.running) return; // nor every frame of a video
  toAnnounce = setTimeout(() => { at("announce").textContent = text; }, 400);
}

// Pictures

/** Ask the models that have not answered for `picture` yet, then show it. Whether it was shown. */
async function show(picture) {
  asked.abort();
  asked = new AbortController();
  const { signal } = asked;
  state.wanted = picture;
  document.body.classList.toggle("busy", !state.player);
  try {
    if (!state.models.size) await loadModels(); // they could not be read at the start
    const missing = shownModels().filter((model) => picture.answers.get(model.name)?.graph !== model.graph);
    const bitmap = picture.bitmap ?? decoded(picture.blob);
    const answers = await Promise.all(missing.map((model) => detect(model.name, picture.blob, picture.name, signal)));
    picture.bitmap = await bitmap;
    if (signal.aborted) return false;
    for (const answer of answers) picture.answers.set(answer.model, answer);
    const [answer] = picture.answers.values();
    Object.assign(picture, { width: answer.width, height: answer.height });
    if (state.picture !== picture) release(state.picture);
    state.picture = picture;
    state.selected = -1;
    clearError();
    render();
    // The file of a model was replaced: its card, too.
    if (answers.some((one) => one.graph !== state.models.get(one.model).graph)) await loadModels();
    return true;
  } finally {
    if (!signal.aborted) document.body.classList.remove("busy");
  }
}

function release(picture) { // pixels are decoded again when it is shown again
  picture?.bitmap?.close();
  if (picture) picture.bitmap = null;
}

async function showOr(picture) {
  try {
    return await show(picture);
  } catch (error) {
    showError(error);
    if ([413, 415, 422].includes(error.status)) state.wanted = state.picture; // it would be refused again
    render();
    return false;
  }
}

async function take(files) {
  if (!files.length) return;
  clearError();
  closePlayer();
  const turn = ++taken;
  const video = files.find((file) => file.type.startsWith("video/"));
  if (video) {
    try {
      const clip = await Clip.open(video);
      if (turn === taken) play(clip);
      else clip.close();
    } catch (error) {
      showError(error);
    }
    return;
  }
  strip.clear();
  const pictures = files.map(fromFile);
  for (const old of at("strip").querySelectorAll("img")) URL.revokeObjectURL(old.src);
  at("strip").hidden = files.length < 2;
  at("strip").replaceChildren(...(files.length < 2 ? [] : pictures.map((picture) => {
    const image = element("img", { src: URL.createObjectURL(picture.blob), alt: picture.name, loading: "lazy" });
    const button = element("button", { type: "button", title: picture.name }, image);
    button.addEventListener("click", () => showOr(picture));
    strip.set(picture, button);
    return button;
  })));
  await showOr(pictures[0]);
}

// Video and camera

function play(player) {
  state.player = player;
  at("strip").hidden = true;
  at("player").hidden = false;
  for (const id of ["back", "step", "pace-field", "position-field"]) at(id).hidden = player.live;
  at("position").max = player.duration;
  run(player);
}

async function run(player) {
  const turn = {}; // Pause and Play may begin another one before this one has seen the pause
  Object.assign(player, { running: true, turn });
  showPlayer();
  while (player.running && player.turn === turn && state.player === player) {
    if (!await advance(player, () => player.next(Number(at("pace").value)))) break;
  }
  if (player.turn !== turn || state.player !== player) return;
  player.running = false;
  showPlayer();
  render();
}

/** Show what `frame` gives of a player; false where it gives none, or where something is wrong. */
async function advance(player, frame) {
  const number = ++frames;
  try {
    const picture = await frame();
    while (picture && number === frames && state.player === player) {
      if (await shownNow(picture)) {
        if (state.player === player) showPlayer();
        return true;
      }
    }
  } catch (error) {
    showError(error);
  }
  return false;
}

/** Show a frame; where the queue is full, say so, wait as the server asks, and return false. */
async function shownNow(picture) {
  try {
    return await show(picture);
  } catch (error) {
    if (error.status !== 429) throw error;
    showError(error);
    await new Promise((resolve) => setTimeout(resolve, error.retry * 1000));
    return false;
  }
}

function showPlayer() {
  const { player } = state;
  at("play").textContent = player.running ? "Pause" : "Play";
  if (player.live) {
    at("time").textContent = "camera";
    return;
  }
  const time = player.video.currentTime;
  at("position").value = time;
  at("time").textContent = `${time.toFixed(2)} of ${player.duration.toFixed(2)} s`;
}

/** Stop playing, and show the frame `seconds` away. */
async function move(time) {
  const { player } = state;
  player.running = false;
  player.begun = true;
  await advance(player, () => player.at(time));
}

function closePlayer() {
  state.player?.close();
  state.player = null;
  at("player").hidden = true;
  at("strip").hidden = !strip.size;
}

// Showing

function limitsOf(model) {
  const { threshold } = state;
  return threshold === null ? recommended(model.card) : new Map(model.classes.map((name) => [name, threshold]));
}

function answerOf(side) {
  return state.picture?.answers.get(state[side]);
}

/** The detections of a side that reach the threshold, of all classes. */
function above(side) {
  const answer = answerOf(side);
  const limits = answer ? limitsOf(state.models.get(answer.model)) : null;
  return answer ? answer.detections.filter((detection) => reaches(detection, limits)) : [];
}

function isCompared() {
  return Boolean(state.right && answerOf("right"));
}

function colorOf(name) {
  return classColor(state.classes.indexOf(name));
}

function render() {
  const models = shownModels();
  if (!models.length) return;
  const found = Object.fromEntries(SIDES.map((side) => [side, above(side)]));
  const shown = SIDES.map((side) => found[side].filter(({ name }) => !state.off.has(name)));
  // A model whose file was replaced may have had other classes.
  const named = SIDES.flatMap((side) => found[side].map(({ name }) => name));
  state.classes = [...new Set([...models.flatMap((model) => model.classes), ...named])];
  const comparing = isCompared();
  state.rows = comparing ? compare(...shown) : shown[0].map((left) => ({ side: "left", left, right: null }));
  if (state.selected >= state.rows.length) state.selected = -1;
  renderThreshold(models);
  renderClasses(found, comparing);
  const sides = { left: `only ${state.left}`, right: `only ${state.right}`, both: "both" };
  showList(at("list"), state.rows, colorOf, state.selected, comparing ? sides : null);
  showTimes(at("times"), SIDES.map(answerOf).filter(Boolean));
  for (const [picture, button] of strip) button.setAttribute("aria-pressed", String(picture === state.picture));
  at("summary").textContent = summary(comparing);
  if (state.picture) announce(`${state.picture.name}: ${at("summary").textContent}`);
  renderViews();
}

function renderThreshold(models) {
  const own = state.threshold === null;
  const scores = models.flatMap((model) => [...recommended(model.card).values()]);
  const [low, high] = [Math.min(...scores), Math.max(...scores)].map((score) => score.toFixed(2));
  at("threshold").value = own ? models[0].card.threshold : state.threshold;
  at("threshold-value").textContent = !own ? state.threshold.toFixed(2) : low === high ? low : `${low} to ${high}`;
  at("threshold").setAttribute("aria-valuetext", own ? "as the model recommends" : state.threshold.toFixed(2));
  at("recommended").setAttribute("aria-pressed", String(own));
}

function renderClasses(found, comparing) {
  const count = (side, name) => found[side].filter((detection) => detection.name === name).length;
  const rows = state.classes.map((name) => {
    const counts = comparing ? `${count("left", name)} / ${count("right", name)}` : String(count("left", name));
    return { name, color: colorOf(name), count: state.picture ? counts : "", on: !state.off.has(name) };
  });
  showClasses(at("classes"), rows, (name, on) => {
    state.off[on ? "delete" : "add"](name);
    render();
  });
  at("every").hidden = state.classes.length < 3;
}

function summary(comparing) {
  if (!state.picture) return "No picture yet.";
  const count = (side) => state.rows.filter((row) => row.side === side).length;
  if (comparing) {
    return `both ${count("both")}, only ${state.left} ${count("left")}, only ${state.right} ${count("right")}`;
  }
  const number = state.rows.length;
  return number === 1 ? "1 detection" : `${number || "no"} detections`;
}

/** Draw the pictures. Called when the window changes as well. */
function renderViews() {
  const comparing = isCompared();
  at("views").classList.toggle("two", comparing);
  for (const side of SIDES) {
    const view = at(`view-${side}`);
    const answer = answerOf(side);
    view.hidden = !answer;
    if (!answer) continue;
    const caption = view.querySelector("figcaption"), canvas = view.querySelector("canvas");
    const unseen = state.picture.bitmap ? "" : " (this browser cannot show it, but the server reads it)";
    caption.textContent = `${comparing ? `${answer.model}: ` : ""}${state.picture.name}${unseen}`;
    const marks = state.rows.flatMap((row, number) => !row[side] ? [] : [{
      detection: row[side], color: colorOf(row[side].name), quiet: row.side === "both",
      selected: number === state.selected,
    }]);
    const room = { width: view.clientWidth, height: Math.max(240, window.innerHeight * 0.74) };
    draw(canvas, state.picture, marks, room);
    canvas.setAttribute("aria-label", `${state.picture.name} by ${answer.model}: ${marks.length} boxes`);
  }
}

function select(number) {
  state.selected = number;
  markSelected(at("list"), number);
  renderViews();
}

// What the user does

at("left").addEventListener("change", () => chooseModel("left"));
at("right").addEventListener("change", () => chooseModel("right"));
function chooseModel(side) {
  state[side] = at(side).value;
  state.selected = -1;
  showCards(at("cards"), shownModels());
  if (state.player?.running) return; // the next frame is asked of it
  if (state.wanted) showOr(state.wanted); // what is there stays until the answer comes
  else render();
}

at("files").addEventListener("change", () => {
  take([...at("files").files]);
  at("files").value = ""; // the same file may be chosen again
});
for (const name of ["dragenter", "dragover"]) {
  window.addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
}
window.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) at("drop").classList.remove("over");
});
window.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  take([...event.dataTransfer.files]);
});
window.addEventListener("paste", (event) => take([...event.clipboardData.files]));
at("camera").hidden = !Camera.there();
at("camera").addEventListener("click", async () => {
  clearError();
  closePlayer();
  const turn = ++taken;
  try {
    const camera = await Camera.open();
    if (turn === taken) play(camera);
    else camera.close();
  } catch (error) {
    showError(error);
  }
});

at("play").addEventListener("click", () => {
  const { player } = state;
  if (player.running) {
    player.running = false;
    showPlayer();
    return;
  }
  // From its end, a video begins again.
  if (!player.live && player.video.currentTime + Number(at("pace").value) > player.duration) {
    player.begun = false;
    player.at(0).then(() => run(player), showError);
  } else run(player);
});
at("step").addEventListener("click", () => move(state.player.video.currentTime + Number(at("pace").value)));
at("back").addEventListener("click", () => move(state.player.video.currentTime - Number(at("pace").value)));
at("position").addEventListener("change", () => move(Number(at("position").value)));
at("stop").addEventListener("click", () => {
  closePlayer();
  at("files").focus();
});

at("threshold").addEventListener("input", () => {
  state.threshold = Number(at("threshold").value);
  render();
});
at("recommended").addEventListener("click", () => {
  state.threshold = null;
  render();
});
at("all").addEventListener("click", () => {
  state.off.clear();
  render();
});
at("none").addEventListener("click", () => {
  for (const name of state.classes) state.off.add(name);
  render();
});

at("list").addEventListener("click", (event) => {
  const item = event.target.closest("li");
  if (item) select([...at("list").children].indexOf(item));
});
at("list").addEventListener("keydown", (event) => {
  const last = state.rows.length - 1;
  const to = { ArrowDown: Math.min(state.selected + 1, last), ArrowUp: Math.max(state.selected - 1, 0), Home: 0,
    End: last }[event.key];
  if (to === undefined || last < 0) return;
  event.preventDefault();
  select(to);
});
window.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (state.selected >= 0) select(-1);
  else if (state.player?.running) at("play").click();
  else clearError();
});
for (const side of SIDES) {
  at(`view-${side}`).querySelector("canvas").addEventListener("click", (event) => {
    const scale = state.picture.width / event.target.clientWidth;
    const x = event.offsetX * scale, y = event.offsetY * scale;
    const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
    const hit = state.rows.map((row, number) => ({ number, box: row[side]?.box_xyxy }))
      .filter(({ box }) => box && box[0] <= x && x <= box[2] && box[1] <= y && y <= box[3])
      .sort((a, b) => area(a.box) - area(b.box))[0]; // the smallest: others can be reached around it
    select(hit ? hit.number : -1);
  });
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  try {
    useKey(at("key").value, at("key-keep").checked);
  } catch (error) {
    showError(error);
  }
  at("key").value = "";
  start().then(() => {
    if (state.wanted && at("key-form").hidden) showOr(state.wanted);
  });
});
window.addEventListener("resize", renderViews);
window.addEventListener("beforeprint", () => {
  for (const card of at("cards").children) card.open = true;
});

async function start() {
  try {
    await loadModels();
    clearError();
  } catch (error) {
    showError(error);
  }
}

start();
