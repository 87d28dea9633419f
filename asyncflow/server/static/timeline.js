// When each task run ran: one canvas, however many there are.

import { colours, keepPainted, stepOf } from "./canvas.js";
import { clean, fill, h } from "./dom.js";
import { duration, words } from "./format.js";
import { iconButton } from "./parts.js";

const HEAD = 22;
const LABELS = 132;

/** Lanes for spans, so that none of a lane overlap; those of one task are together. */
export function pack(spans, tasks, now) {
  const groups = tasks.map((name) => ({ name, spans: [], lanes: 0, first: 0 }));
  for (const span of spans) groups[span[1]]?.spans.push(span);
  const placed = [];
  let first = 0;
  for (const group of groups) {
    group.spans.sort((a, b) => a[2] - b[2]);
    // Lanes by the time at which they are free: a heap gives the first, so that 10,000 spans of
    // one task cost 10,000 logarithms and not a hundred million comparisons.
    const free = [];
    for (const span of group.spans) {
      const end = span[3] ?? now;
      let lane;
      if (free.length && free[0].at <= span[2]) lane = pop(free).lane;
      else lane = group.lanes++;
      push(free, { at: end, lane });
      placed.push({ span, lane: first + lane, start: span[2], end });
    }
    group.first = first;
    first += group.lanes;
  }
  return { groups: groups.filter((group) => group.spans.length), placed, lanes: first };
}

function push(heap, item) {
  heap.push(item);
  let i = heap.length - 1;
  while (i > 0) {
    const up = (i - 1) >> 1;
    if (heap[up].at <= heap[i].at) return;
    [heap[up], heap[i]] = [heap[i], heap[up]];
    i = up;
  }
}

function pop(heap) {
  const top = heap[0];
  const last = heap.pop();
  if (heap.length) {
    heap[0] = last;
    let i = 0;
    for (;;) {
      const [a, b] = [2 * i + 1, 2 * i + 2];
      let least = i;
      if (a < heap.length && heap[a].at < heap[least].at) least = a;
      if (b < heap.length && heap[b].at < heap[least].at) least = b;
      if (least === i) return top;
      [heap[least], heap[i]] = [heap[i], heap[least]];
      i = least;
    }
  }
  return top;
}

export function timeline(signal, onPick) {
  const canvas = h("canvas.timeline", {
    tabindex: "0",
    role: "img",
    "aria-label": "Timeline of the task runs; the table below has the same",
  });
  const tip = h("div.tip", { hidden: true });
  const node = h("div.picture", null, canvas, tip);
  let data = null;
  let view = null; // [from, to] in ms
  let top = 0; // pixels scrolled
  let hover = null;
  let drag = null;

  const labels = () => (canvas.clientWidth < 560 ? 0 : LABELS);
  const whole = () => [0, Math.max(1, data.to)];
  const inner = () => canvas.clientHeight - HEAD;
  const laneHeight = () => Math.max(3, Math.min(22, inner() / Math.max(1, data.lanes)));
  const scale = () => (canvas.clientWidth - labels() - 8) / (view[1] - view[0]);
  const x = (ms) => labels() + (ms - view[0]) * scale();

  const later = keepPainted(canvas, (g, width, height) => {
    if (!data) return;
    const colour = colours();
    const left = labels();
    const lane = laneHeight();
    top = Math.max(0, Math.min(top, data.lanes * lane - inner()));
    g.textBaseline = "middle";
    const step = stepOf(view[1] - view[0], Math.max(2, (width - left) / 90));
    for (let at = Math.ceil(view[0] / step) * step; at <= view[1]; at += step) {
      g.strokeStyle = colour.line;
      g.beginPath();
      g.moveTo(Math.round(x(at)) + 0.5, HEAD - 4);
      g.lineTo(Math.round(x(at)) + 0.5, height);
      g.stroke();
      g.fillStyle = colour.muted;
      const text = at === 0 ? "0" : duration(at / 1000);
      const half = g.measureText(text).width / 2;
      g.textAlign = x(at) - left < 16 ? "left" : x(at) + half > width ? "right" : "center";
      g.fillText(text, g.textAlign === "right" ? width : x(at), 9);
    }
    g.save();
    g.beginPath();
    g.rect(left, HEAD, width - left, inner());
    g.clip();
    const tall = lane > 6 ? lane - 3 : Math.max(1.5, lane - 0.5);
    for (const one of data.placed) {
      const y = HEAD + one.lane * lane - top;
      if (y + lane < HEAD || y > height || one.end < view[0] || one.start > view[1]) continue;
      const from = Math.max(x(one.start), left - 2);
      const wide = Math.max(1.5, Math.min(x(one.end), width + 2) - from);
      g.fillStyle = colour[one.span[4]] ?? colour.muted;
      g.globalAlpha = hover && hover !== one ? 0.55 : 0.9;
      if (tall > 8 && wide > 6) {
        g.beginPath();
        g.roundRect(from, y + 1.5, wide, tall, 3);
        g.fill();
      } else {
        g.fillRect(from, y + 1, wide, tall);
      }
      if (one.span[5] > 1 && tall > 8 && wide > 24) {
        g.globalAlpha = 1;
        g.fillStyle = colour.surface;
        g.textAlign = "left";
        g.fillText(`×${one.span[5]}`, from + 5, y + 2 + tall / 2);
      }
    }
    g.globalAlpha = 1;
    g.restore();
    g.save();
    g.beginPath();
    g.rect(0, HEAD, width, inner());
    g.clip();
    for (const group of data.groups) {
      const y = HEAD + group.first * lane - top;
      if (group.first > 0) {
        g.strokeStyle = colour.line;
        g.beginPath();
        g.moveTo(0, Math.round(y) + 0.5);
        g.lineTo(width, Math.round(y) + 0.5);
        g.stroke();
      }
      if (left && group.lanes * lane >= 10) {
        const middle = Math.max(HEAD + 8, Math.min(y + Math.min(group.lanes * lane, 22) / 2, height - 6));
        g.fillStyle = colour.text;
        g.textAlign = "left";
        g.fillText(fit(g, clean(group.name), left - 12), 2, middle);
      }
    }
    g.restore();
  }, signal);

  function at(event) {
    if (!data) return null;
    const lane = Math.floor((event.offsetY - HEAD + top) / laneHeight());
    const slack = 3 / scale();
    const ms = (event.offsetX - labels()) / scale() + view[0];
    if (event.offsetY < HEAD || event.offsetX < labels()) return null;
    return data.placed.find((one) => one.lane === lane && one.start - slack <= ms && ms <= one.end + slack) ?? null;
  }

  function point(event) {
    const found = at(event);
    if (found !== hover) {
      hover = found;
      later();
    }
    tip.hidden = !found;
    canvas.classList.toggle("points", Boolean(found));
    if (!found) return;
    const [seq, task, start, end, state, attempts] = found.span;
    fill(
      tip,
      h("strong", null, `${data.tasks[task]}-${seq}`),
      h("div", null, `${words(state)}, ${duration(((end ?? data.to) - start) / 1000)}`),
      h("div", null, `began after ${duration(start / 1000)}`),
      attempts > 1 ? h("div", null, `${attempts} attempts`) : null,
    );
    tip.style.left = `${Math.max(0, Math.min(event.offsetX + 14, canvas.clientWidth - 190))}px`;
    tip.style.top = `${Math.min(event.offsetY + 14, canvas.clientHeight - 70)}px`;
  }

  function zoom(factor, around = (view[0] + view[1]) / 2) {
    const [from, to] = whole();
    const span = Math.max(0.5, Math.min((view[1] - view[0]) * factor, to - from));
    const share = (around - view[0]) / (view[1] - view[0]);
    move(around - share * span, span);
  }

  function move(from, span = view[1] - view[0]) {
    const [least, most] = whole();
    const start = Math.max(least, Math.min(from, most - span));
    view = [start, start + span];
    later();
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (!data) return;
    drag = { x: event.offsetX, y: event.offsetY, view: [...view], top, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!data) return;
    if (!drag) {
      point(event);
      return;
    }
    const by = [event.offsetX - drag.x, event.offsetY - drag.y];
    if (Math.hypot(...by) > 4) drag.moved = true;
    if (!drag.moved) return;
    tip.hidden = true;
    top = drag.top - by[1];
    move(drag.view[0] - by[0] / scale());
  });
  canvas.addEventListener("pointerup", (event) => {
    const found = drag && !drag.moved ? at(event) : null;
    drag = null;
    if (found) onPick(found.span[0]);
  });
  canvas.addEventListener("pointercancel", () => {
    drag = null;
  });
  canvas.addEventListener("pointerleave", () => {
    tip.hidden = true;
    if (hover) later();
    hover = null;
  });
  canvas.addEventListener("dblclick", (event) => {
    if (data) zoom(0.4, (event.offsetX - labels()) / scale() + view[0]);
  });
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!data) return;
      if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        zoom(Math.exp(event.deltaY * 0.004), (event.offsetX - labels()) / scale() + view[0]);
      } else if (Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey) {
        event.preventDefault();
        move(view[0] + (event.deltaX || event.deltaY) / scale());
      }
    },
    { passive: false },
  );
  canvas.addEventListener("keydown", (event) => {
    if (!data) return;
    const span = view[1] - view[0];
    const acts = {
      ArrowLeft: () => move(view[0] - span / 8),
      ArrowRight: () => move(view[0] + span / 8),
      ArrowUp: () => { top -= 40; later(); },
      ArrowDown: () => { top += 40; later(); },
      "+": () => zoom(0.6),
      "=": () => zoom(0.6),
      "-": () => zoom(1 / 0.6),
      0: reset,
    };
    if (!acts[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    acts[event.key]();
  });

  function reset() {
    if (!data) return;
    view = whole();
    top = 0;
    later();
  }

  return {
    node,
    tools: [
      iconButton("minus", "Zoom out", () => data && zoom(1 / 0.6)),
      iconButton("plus", "Zoom in", () => data && zoom(0.6)),
      h("button.button.small", { type: "button", onclick: reset }, "Whole run"),
    ],
    show(found) {
      const now = Math.max(0, Date.now() - new Date(found.start).getTime());
      const open = found.spans.some((span) => span[3] === null);
      let to = open ? now : 1;
      for (const span of found.spans) to = Math.max(to, span[3] ?? span[2]);
      const all = data === null || (view[0] <= 0 && view[1] >= data.to);
      data = { ...pack(found.spans, found.tasks, to), tasks: found.tasks, to };
      if (all) view = whole();
      hover = null;
      canvas.style.height = `${Math.max(96, Math.min(360, HEAD + data.lanes * 22 + 6))}px`;
      canvas.setAttribute(
        "aria-label",
        `Timeline of ${found.spans.length} task runs over ${duration(to / 1000)}; the table below has the same`,
      );
      later();
    },
  };
}

function fit(g, text, width) {
  if (g.measureText(text).width <= width) return text;
  let [low, high] = [0, Math.min(text.length, 60)];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (g.measureText(`${text.slice(0, middle)}…`).width <= width) low = middle;
    else high = middle - 1;
  }
  return `${text.slice(0, low)}…`;
}
