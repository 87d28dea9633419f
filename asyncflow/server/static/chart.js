// Runs by hour and state, as stacked bars.

import { colours, keepPainted } from "./canvas.js";
import { fill, h } from "./dom.js";
import { STATES, dayOf, hourOf, number, words } from "./format.js";

export function bars(signal, onPick) {
  const canvas = h("canvas.chart", { role: "img", "aria-label": "Runs by hour" });
  const tip = h("div.tip", { hidden: true });
  const node = h("div.picture", null, canvas, tip);
  let buckets = [];
  let hover = -1;
  const LEFT = 34;
  const BOTTOM = 20;

  const sum = (bucket) => Object.values(bucket.counts).reduce((a, b) => a + b, 0);
  const place = (width) => (width - LEFT - 4) / Math.max(1, buckets.length);

  const later = keepPainted(canvas, (g, width, height) => {
    const colour = colours();
    const most = niceTop(Math.max(4, ...buckets.map(sum)));
    const inner = height - BOTTOM - 8;
    g.textBaseline = "middle";
    g.textAlign = "right";
    for (const part of [0, 0.5, 1]) {
      const y = Math.round(8 + inner * (1 - part)) + 0.5;
      g.strokeStyle = colour.line;
      g.beginPath();
      g.moveTo(LEFT, y);
      g.lineTo(width, y);
      g.stroke();
      g.fillStyle = colour.muted;
      g.fillText(number(most * part), LEFT - 6, y);
    }
    const step = place(width);
    const wide = Math.max(2, Math.min(step - 3, 36));
    g.textAlign = "center";
    const every = Math.ceil(64 / step);
    buckets.forEach((bucket, i) => {
      const x = LEFT + i * step + (step - wide) / 2;
      if (i === hover) {
        g.fillStyle = colour.line;
        g.globalAlpha = 0.5;
        g.fillRect(LEFT + i * step, 8, step, inner);
        g.globalAlpha = 1;
      }
      let y = 8 + inner;
      for (const state of STATES) {
        const count = bucket.counts[state];
        if (!count) continue;
        const tall = (count / most) * inner;
        g.fillStyle = colour[state];
        g.globalAlpha = state === "COMPLETED" ? 0.75 : 0.95;
        g.fillRect(x, y - tall, wide, Math.max(1, tall - 1));
        y -= tall;
      }
      g.globalAlpha = 1;
      if (i % every === 0) {
        g.fillStyle = colour.muted;
        g.fillText(label(bucket), x + wide / 2, height - 8);
      }
    });
  }, signal);

  const label = (bucket) => (buckets.length > 48 || isDaily() ? dayOf(bucket.at) : hourOf(bucket.at));
  const isDaily = () => buckets.length > 1 && new Date(buckets[1].at) - new Date(buckets[0].at) > 4e7;

  canvas.addEventListener("pointermove", (event) => {
    const i = Math.floor((event.offsetX - LEFT) / place(canvas.clientWidth));
    const bucket = buckets[i];
    if (i !== hover) later();
    hover = bucket ? i : -1;
    tip.hidden = !bucket;
    canvas.classList.toggle("points", Boolean(bucket));
    if (!bucket) return;
    const lines = STATES.filter((state) => bucket.counts[state]);
    fill(tip, h("strong", null, `${dayOf(bucket.at)} ${hourOf(bucket.at)}`),
      lines.length ? lines.map((state) => h("div", null, `${number(bucket.counts[state])} ${words(state).toLowerCase()}`)) : h("div", null, "no runs"));
    tip.style.left = `${Math.min(event.offsetX + 12, canvas.clientWidth - 140)}px`;
    tip.style.top = "8px";
  });
  canvas.addEventListener("pointerleave", () => {
    tip.hidden = true;
    hover = -1;
    later();
  });
  canvas.addEventListener("click", () => {
    if (buckets[hover]) onPick(buckets[hover]);
  });

  return {
    node,
    show(list) {
      buckets = list;
      const total = {};
      for (const bucket of list) {
        for (const [state, n] of Object.entries(bucket.counts)) total[state] = (total[state] ?? 0) + n;
      }
      const text = STATES.filter((state) => total[state]).map((state) => `${number(total[state])} ${words(state).toLowerCase()}`);
      canvas.setAttribute("aria-label", `Runs by hour: ${text.join(", ") || "none"}`);
      later();
    },
  };
}

function niceTop(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 4, 6, 8, 10].map((n) => n * power).find((n) => n >= most);
}
