// What of an answer is shown, and what two answers have in common.

export const SAME_IOU = 0.5;

/** Whether the score of a detection reaches the threshold of its class. */
export function reaches(detection, limits) {
  // In float32, as the server compares: a score of 0.44 reaches 0.44.
  return Math.fround(detection.score) >= Math.fround(limits.get(detection.name) ?? 0);
}

/** The thresholds that a card recommends, for each class by name. */
export function recommended(card) {
  return new Map(card.classes.map((name) => [name, card.thresholds?.[name] ?? card.threshold]));
}

/** Overlap of two boxes [x1, y1, x2, y2]: intersection over union, 0 to 1. */
export function iou(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const shared = width * height;
  return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared);
}

/** Rows of a comparison: { side: left, right or both, left, right }. A box has one partner at most, the nearest first.
 * Boxes that only one has come first. */
export function compare(left, right) {
  const near = [];
  for (const a of left) {
    for (const b of right) {
      const overlap = a.name === b.name ? iou(a.box_xyxy, b.box_xyxy) : 0;
      if (overlap >= SAME_IOU) near.push({ a, b, overlap });
    }
  }
  near.sort((one, other) => other.overlap - one.overlap);
  const partner = new Map();
  for (const { a, b } of near) {
    if (!partner.has(a) && !partner.has(b)) partner.set(a, b).set(b, a);
  }
  return [
    ...left.filter((a) => !partner.has(a)).map((a) => ({ side: "left", left: a, right: null })),
    ...right.filter((b) => !partner.has(b)).map((b) => ({ side: "right", left: null, right: b })),
    ...left.filter((a) => partner.has(a)).map((a) => ({ side: "both", left: a, right: partner.get(a) })),
  ];
}
