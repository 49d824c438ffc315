// The picture with its boxes on a canvas, and the colors of classes.

// Told apart on light and dark ground, and most of them by people who see fewer colors; names stand beside them.
const COLORS = [
  "#e6550d", "#1f83d6", "#18a558", "#b453d6", "#d9a400", "#e0407f", "#12a5a5", "#8a6d4b", "#7a86f0", "#7fae1f",
  "#c23b3b", "#6b7f94",
];
const GOLDEN_ANGLE = 137.508;
const LABEL_FONT = "600 12px system-ui, sans-serif";

/** The color of the class with this number. */
export function classColor(number) {
  if (number < COLORS.length) return COLORS[number];
  return `hsl(${Math.round(number * GOLDEN_ANGLE) % 360} 62% ${number % 2 ? 46 : 58}%)`;
}

/** Give `canvas` the largest size that fits `width` and `height` of the screen; the factor from picture to screen. */
function fit(canvas, picture, width, height) {
  const scale = Math.min(width / picture.width, height / picture.height, 4);
  const ratio = window.devicePixelRatio || 1;
  const w = Math.max(1, Math.round(picture.width * scale)), h = Math.max(1, Math.round(picture.height * scale));
  canvas.style.width = `${w}px`;
  canvas.style.height = `${h}px`;
  canvas.width = Math.round(w * ratio);
  canvas.height = Math.round(h * ratio);
  return { scale: w / picture.width, ratio, w, h };
}

/** Draw `picture` ({ bitmap, width, height }) and `marks` ({ detection, color, quiet, selected }).
 * bitmap may be null: a kind of picture that the browser cannot show. */
export function draw(canvas, picture, marks, room) {
  const { scale, ratio, w, h } = fit(canvas, picture, room.width, room.height);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  if (picture.bitmap) {
    context.imageSmoothingQuality = "high";
    context.drawImage(picture.bitmap, 0, 0, w, h);
  } else {
    context.fillStyle = "#777";
    context.fillRect(0, 0, w, h);
  }
  const selected = marks.filter((mark) => mark.selected);
  if (selected.length) {
    context.fillStyle = "rgb(0 0 0 / 45%)";
    context.fillRect(0, 0, w, h);
    for (const { detection } of selected) showThrough(context, picture, detection, scale, w, h);
  }
  // By rising score: of boxes that overlap, the surest is on top; what is selected above all.
  const order = [...marks].sort((a, b) => a.detection.score - b.detection.score);
  const isQuiet = (mark) => !mark.selected && (mark.quiet || selected.length > 0);
  for (const mark of order.filter(isQuiet)) box(context, mark, scale, true);
  const loud = [...order.filter((mark) => !isQuiet(mark) && !mark.selected), ...selected];
  for (const mark of loud) box(context, mark, scale, false);
  for (const mark of loud) label(context, mark, scale, w);
}

function showThrough(context, picture, detection, scale, w, h) {
  const [x1, y1, x2, y2] = detection.box_xyxy.map((value) => value * scale);
  context.save();
  context.beginPath();
  context.rect(x1, y1, x2 - x1, y2 - y1);
  context.clip();
  if (picture.bitmap) context.drawImage(picture.bitmap, 0, 0, w, h);
  context.restore();
}

function box(context, mark, scale, quiet) {
  const [x1, y1, x2, y2] = mark.detection.box_xyxy.map((value) => value * scale);
  const width = mark.selected ? 3.5 : quiet ? 1.25 : 2;
  context.globalAlpha = quiet ? 0.7 : 1;
  context.lineJoin = "round";
  context.strokeStyle = "rgb(255 255 255 / 75%)"; // seen on a picture of the same color, too
  context.lineWidth = width + 2;
  if (!quiet) context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  context.strokeStyle = mark.color;
  context.lineWidth = width;
  context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  context.globalAlpha = 1;
}

function label(context, mark, scale, w) {
  const [x1, y1] = mark.detection.box_xyxy.map((value) => value * scale);
  const text = `${mark.detection.name} ${mark.detection.score.toFixed(2)}`;
  context.font = LABEL_FONT;
  const width = context.measureText(text).width + 8;
  const left = Math.max(0, Math.min(x1 - 1, w - width)), top = y1 >= 17 ? y1 - 17 : Math.max(0, y1);
  context.fillStyle = "rgb(0 0 0 / 78%)";
  context.fillRect(left, top, width, 17);
  context.fillStyle = mark.color;
  context.fillRect(left, top, 3, 17);
  context.fillStyle = "#fff";
  context.textBaseline = "middle";
  context.fillText(text, left + 6, top + 9);
}
