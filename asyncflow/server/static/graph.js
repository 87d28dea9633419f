// Which tasks follow which: one node for all task runs of a task, in levels from left to right.

import { h, keyed, s } from "./dom.js";
import { number } from "./format.js";
import { stateBar } from "./parts.js";

const WIDE = 176;
const TALL = 58;
const GAP = [56, 18];
const MOST = 120;

/** Levels of names: each is right of what it depends on; an edge that closes a circle is left out. */
export function levels(names, edges) {
  const below = new Map(names.map((name) => [name, []]));
  for (const [from, to] of edges) if (from !== to && below.has(from) && below.has(to)) below.get(from).push(to);
  const seen = new Map();
  const order = [];
  const kept = [];
  for (const root of names) {
    // By hand, since a chain of tasks may be longer than the stack is deep.
    const stack = seen.has(root) ? [] : [[root, 0]];
    if (stack.length) seen.set(root, "open");
    while (stack.length) {
      const top = stack.at(-1);
      const [name] = top;
      const next = below.get(name)[top[1]];
      top[1] += 1;
      if (next === undefined) {
        seen.set(name, "done");
        order.push(name);
        stack.pop();
      } else if (seen.get(next) !== "open") {
        kept.push([name, next]);
        if (!seen.has(next)) {
          seen.set(next, "open");
          stack.push([next, 0]);
        }
      }
    }
  }
  const level = new Map(names.map((name) => [name, 0]));
  const follow = new Map(names.map((name) => [name, []]));
  for (const [from, to] of kept) follow.get(from).push(to);
  for (const name of order.reverse()) {
    for (const next of follow.get(name)) level.set(next, Math.max(level.get(next), level.get(name) + 1));
  }
  const rows = [];
  for (const name of names) (rows[level.get(name)] ??= []).push(name);
  // Twice to the middle of what they depend on: few crossings, and always the same picture.
  for (let sweep = 0; sweep < 2; sweep += 1) {
    rows.forEach((row, i) => {
      if (i === 0) return;
      const place = new Map(rows.flatMap((one) => one.map((name, at) => [name, at])));
      const middle = (name) => {
        const from = kept.filter((edge) => edge[1] === name).map((edge) => place.get(edge[0]));
        return from.length ? from.reduce((a, b) => a + b, 0) / from.length : place.get(name);
      };
      const wanted = new Map(row.map((name) => [name, middle(name)]));
      row.sort((a, b) => wanted.get(a) - wanted.get(b));
    });
  }
  return { rows, edges: kept };
}

export function graph(onPick) {
  const lines = s("svg", { class: "edges", "aria-hidden": "true" });
  const nodes = h("div.nodes");
  const note = h("p.muted.small", { hidden: true });
  const plane = h("div.plane", null, lines, nodes);
  const node = h(
    "div.graph-box",
    { tabindex: "0", role: "region", "aria-label": "Graph of the tasks" },
    plane,
    note,
  );
  let shape = "";
  const places = new Map();

  function layOut(tasks, edges) {
    const { rows, edges: kept } = levels(tasks.map((one) => one.task), edges);
    const most = Math.max(1, ...rows.map((row) => row.length));
    const height = most * (TALL + GAP[1]) - GAP[1];
    places.clear();
    rows.forEach((row, i) => {
      const used = row.length * (TALL + GAP[1]) - GAP[1];
      row.forEach((name, at) => {
        places.set(name, [i * (WIDE + GAP[0]), (height - used) / 2 + at * (TALL + GAP[1])]);
      });
    });
    const width = rows.length * (WIDE + GAP[0]) - GAP[0];
    plane.style.width = `${width}px`;
    plane.style.height = `${height}px`;
    lines.setAttribute("viewBox", `0 0 ${width} ${height}`);
    lines.setAttribute("width", width);
    lines.setAttribute("height", height);
    const paths = kept.slice(0, 400).map(([from, to]) => {
      const [x1, y1] = [places.get(from)[0] + WIDE, places.get(from)[1] + TALL / 2];
      const [x2, y2] = [places.get(to)[0], places.get(to)[1] + TALL / 2];
      const bend = Math.max(24, (x2 - x1) / 2);
      return `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
    });
    lines.replaceChildren(s("path", { d: paths.join("") || "M0 0" }));
  }

  return {
    node,
    show(tasks, edges) {
      const shown = tasks.slice(0, MOST);
      const next = JSON.stringify([shown.map((one) => one.task), edges]);
      if (next !== shape) {
        shape = next;
        layOut(shown, edges);
        nodes.replaceChildren();
        nodes.shown = undefined;
      }
      keyed(nodes, shown, (one) => one.task, (one) => {
        const done = one.counts.COMPLETED ?? 0;
        const made = h(
          "button.node",
          {
            type: "button",
            title: one.task,
            dataset: { state: worst(one.counts) },
            onclick: () => onPick(one.task),
          },
          h("span.node-name", null, one.task),
          h("span.node-count", null, one.total === 1 ? "" : `${number(done)} / ${number(one.total)}`),
          stateBar(one.counts, one.total),
        );
        const [left, top] = places.get(one.task) ?? [0, 0];
        made.style.left = `${left}px`;
        made.style.top = `${top}px`;
        return made;
      });
      note.hidden = tasks.length <= MOST;
      note.textContent = `The first ${MOST} of ${tasks.length} tasks; the table below has all.`;
    },
  };
}

/** The state that a node of many is shown in. */
export function worst(counts) {
  const order = ["FAILED", "CRASHED", "PAUSED", "RUNNING", "CANCELLING", "CANCELLED", "SCHEDULED", "PENDING"];
  return order.find((state) => counts[state]) ?? "COMPLETED";
}
