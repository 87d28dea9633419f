// What both pictures on canvas need: sharp pixels, and the colours of the theme.

import { STATES } from "./format.js";

const probe = document.createElement("span");
probe.hidden = true;
let known = null;

/** The colours of states and of what is around them, as the theme has them now. */
export function colours() {
  if (known) return known;
  document.body.append(probe);
  known = {};
  for (const name of [...STATES, "text", "muted", "line", "surface", "accent"]) {
    probe.style.color = `var(--${name.toLowerCase()})`;
    known[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return known;
}

const painters = new Set();

/** The theme is another: paint everything again. */
export function repaint() {
  known = null;
  for (const paint of [...painters]) paint();
}

/**
 * Keep a canvas as large as its place, and painted.
 * @param {HTMLCanvasElement} canvas
 * @param {function(CanvasRenderingContext2D, number, number)} paint in CSS pixels
 * @param {AbortSignal} signal ends it
 * @returns {function()} paints at the next frame
 */
export function keepPainted(canvas, paint, signal) {
  let asked = 0;
  const now = () => {
    asked = 0;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width || !height) return;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const [w, hgt] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== w || canvas.height !== hgt) Object.assign(canvas, { width: w, height: hgt });
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = '11px ui-sans-serif, system-ui, sans-serif';
    paint(context, width, height);
  };
  const later = () => {
    asked ||= requestAnimationFrame(now);
  };
  const size = new ResizeObserver(later);
  size.observe(canvas);
  painters.add(later);
  signal.addEventListener("abort", () => {
    size.disconnect();
    painters.delete(later);
    cancelAnimationFrame(asked);
  });
  return later;
}

const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 15e3, 3e4, 6e4, 12e4, 3e5, 6e5, 9e5,
  18e5, 36e5, 72e5, 216e5, 432e5, 864e5, 1728e5, 6048e5];

/** A step for an axis of *span* milliseconds with about *count* lines. */
export const stepOf = (span, count) => STEPS.find((step) => span / step <= count) ?? STEPS.at(-1) * 4;
