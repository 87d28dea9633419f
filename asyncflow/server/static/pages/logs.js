// The log lines of a run: searched and paged by the server, a window of them here.

import { get, items, part } from "../api.js";
import { clean, fill, h } from "../dom.js";
import { FINAL, clockTime, exactly, level, number } from "../format.js";
import { at, button, empty } from "../parts.js";

const SHOWN = 250;
const LONG = 1500;
const LEVELS = [["0", "All levels"], ["10", "Debug and above"], ["20", "Info and above"], ["30", "Warnings and errors"], ["40", "Errors"]];

export function logs(context, id, run) {
  const { query } = context;
  const lines = h("div.log-lines", { role: "log", tabindex: "0", "aria-label": "Log lines", "aria-live": "off" });
  const foot = h("div.pager");
  let cursor = null; // the last line that was seen
  let ended = false; // no line comes after it yet
  let generation = 0;
  let typing = 0;
  let count = 0;

  const search = h("input", {
    type: "search", class: "grow", placeholder: "Search the log", "aria-label": "Search the log", "data-filter": "", value: query.get("text") ?? "",
    oninput: () => {
      clearTimeout(typing);
      typing = setTimeout(() => {
        context.setQuery({ text: search.value });
        restart();
      }, 250);
    },
  });
  context.signal.addEventListener("abort", () => clearTimeout(typing));
  const least = h("select", {
    "aria-label": "Level",
    onchange: () => {
      context.setQuery({ level: least.value === "0" ? null : least.value });
      restart();
    },
  }, LEVELS.map(([value, text]) => h("option", { value }, text)));
  least.value = query.get("level") ?? "0";
  const follow = h("input", {
    type: "checkbox", checked: query.get("follow") === "1",
    onchange: () => {
      context.setQuery({ follow: follow.checked ? "1" : null });
      if (follow.checked) toEnd();
    },
  });
  const only = query.get("task_run");
  const onlyNode = only
    ? h("span.chip", null, `Task run #${only.slice(only.lastIndexOf("-") + 1)}`,
        h("a", { href: `#/runs/${part(id)}/logs` }, "all"))
    : null;

  async function page(limit) {
    const mine = generation;
    const answer = await get(`runs/${part(id)}/logs`, {
      level: least.value === "0" ? null : least.value, text: search.value, task_run: only, limit, cursor,
    }, context.signal);
    if (mine !== generation) return false;
    const found = items(answer);
    ended = !answer.next_cursor;
    if (found.length) cursor = answer.next_cursor ?? String(found.at(-1).id);
    count += found.length;
    for (const line of found.slice(-SHOWN)) lines.append(draw(line));
    while (lines.children.length > SHOWN) lines.firstElementChild.remove();
    lines.querySelector(".empty")?.remove();
    if (!lines.children.length) lines.append(empty(search.value || least.value !== "0" ? "No line is like that." : "Nothing was logged."));
    showFoot();
    return true;
  }

  function draw(line) {
    return h("div.log-line", { dataset: { level: level(line.level) } },
      h("span.log-time", { title: exactly(line.time) }, clockTime(line.time)),
      h("span.log-level", null, level(line.level)),
      h("span.log-text", { title: line.logger }, message(line.message)),
      line.task_run_id && !only ? taskRun(line.task_run_id) : null);
  }

  function taskRun(taskRunId) {
    const seq = taskRunId.slice(taskRunId.lastIndexOf("-") + 1);
    return h("a.log-of", { href: at(`runs/${part(id)}`, { open: seq }), title: `Task run ${seq}`, "aria-label": `Task run ${seq}` }, `#${seq}`);
  }

  function message(said) {
    const text = clean(said);
    if (text.length <= LONG) return text;
    const more = h("button.link", { type: "button", onclick: () => more.parentNode.replaceChildren(text) }, `… ${number(text.length - LONG)} more characters`);
    return [text.slice(0, LONG), more];
  }

  function showFoot() {
    fill(foot,
      h("span.muted.small", null, `${number(count)} lines seen${count > SHOWN ? `, the last ${SHOWN} are here` : ""}${ended ? "; that is the end." : "."}`),
      h("span.spring"),
      button("From the beginning", restart, { disabled: count <= SHOWN, kind: "small" }),
      button("Next lines", () => next.now(), { disabled: ended, kind: "small" }),
      button("To the end", toEnd, { disabled: ended, kind: "small" }));
  }

  const next = context.loader(async () => {
    const before = lines.lastElementChild;
    if (await page(200)) before?.scrollIntoView({ block: "nearest" });
  }, 0.2);
  const tail = context.loader(async () => {
    const mine = generation;
    do {
      if (!(await page(500))) return;
    } while (!ended && mine === generation && !context.signal.aborted);
    if (follow.checked || !ended) lines.scrollTop = lines.scrollHeight;
  }, 1);

  function toEnd() {
    tail.now().then(() => {
      lines.scrollTop = lines.scrollHeight;
    });
  }

  function restart() {
    generation += 1;
    cursor = null;
    count = 0;
    ended = false;
    fill(lines);
    if (follow.checked) toEnd();
    else next.now();
  }

  restart();
  context.every(2, () => {
    if (follow.checked && ended && run() && !FINAL.has(run().state)) tail.soon();
  });

  return {
    node: h("div.stack", null,
      h("div.filters", { role: "search" }, search, least, onlyNode, h("label.inline", null, follow, "Follow")),
      lines, foot),
    live() {
      if (follow.checked) tail.soon();
    },
  };
}
