// The task runs of a run: a row for each task, which opens to a table of its runs, page by page.

import { get, items, part } from "./api.js";
import { fill, h, icon, keyed } from "./dom.js";
import { STATES, duration, number, words } from "./format.js";
import { at, badge, button, complain, dialog, empty, facts, failure, pager, result, saysSame, shortId, stateBar, table, tags, took, when } from "./parts.js";
import { waitBanner } from "./waits.js";

const ROWS = 25;
const NAMES = 60;

/** @param {function(string)|null} fork forks the run from a task run, by its id; null: may not */
export function taskTable(context, id, fork) {
  const { query } = context;
  const body = h("tbody");
  const box = table("Tasks", [["Task"], ["Done", "right"], ["States", "bar-cell"], ["Began", "wide"], ["Took", "wide right"]], body);
  const runsBody = h("tbody");
  const runsBox = table("Task runs", [["Task run"], ["State"], ["Began", "wide"], ["Duration", "right"], ["Attempts", "middle right"], ["Message", "wide"]], runsBody);
  const pages = h("div");
  const none = h("div");
  const opened = h("tr.opened", null, h("td", { colspan: "5" }, runsBox, none, pages));
  const more = h("p.muted.small", { hidden: true });
  const find = h("input", {
    type: "search", placeholder: "Find a task", "aria-label": "Find a task", "data-filter": "", class: "narrow", value: query.get("find") ?? "",
    oninput: () => {
      context.setQuery({ find: find.value.trim() });
      draw();
    },
  });
  const state = h(
    "select",
    {
      "aria-label": "State of task runs",
      onchange: () => {
        context.setQuery({ state: state.value });
        cursors = [null];
        draw();
        if (query.get("task")) runs.now();
      },
    },
    h("option", { value: "" }, "Any state"),
    h("option", { value: "not_completed" }, "Not completed"),
    STATES.map((one) => h("option", { value: one }, words(one))),
  );
  state.value = query.get("state") ?? "";
  let list = [];
  let cursors = [null];

  const matches = (one) => {
    const wanted = state.value;
    if (!one.task.toLowerCase().includes(find.value.trim().toLowerCase())) return false;
    if (!wanted) return true;
    if (wanted === "not_completed") return (one.counts.COMPLETED ?? 0) < one.total;
    return Boolean(one.counts[wanted]);
  };

  function draw() {
    const fit = list.filter(matches);
    const found = fit.slice(0, NAMES);
    const open = query.get("task");
    if (open && !found.some((one) => one.task === open)) {
      const own = list.find((one) => one.task === open);
      if (own) found.unshift(own);
    }
    const rows = found.map((one) => ({ ...one, open: one.task === open }));
    if (rows.some((one) => one.open)) rows.splice(rows.findIndex((one) => one.open) + 1, 0, null);
    keyed(body, rows, (one) => one?.task ?? "\u0000", (one) => (one === null ? opened : row(one)));
    more.hidden = fit.length <= NAMES;
    more.textContent = `The first ${NAMES} of ${number(fit.length)} tasks: find others by their name.`;
  }

  function row(one) {
    const seconds = one.first_started && one.last_ended
      ? (new Date(one.last_ended) - new Date(one.first_started)) / 1000 : null;
    return h(
      "tr",
      { dataset: { task: one.task } },
      h("td.main-cell", null,
        h("button.expand", {
          type: "button", "aria-expanded": String(one.open),
          onclick: () => (one.open ? shut() : expand(one.task, false)),
        }, icon(one.open ? "down" : "right"), one.task)),
      h("td.right", null, `${number(one.counts.COMPLETED ?? 0)} / ${number(one.total)}`,
        one.counts.FAILED && one.total > 1
          ? h("div", null, h("button.link.bad", { type: "button", onclick: () => showFailed(one.task) }, `${number(one.counts.FAILED)} failed`))
          : null),
      h("td.bar-cell", null, stateBar(one.counts, one.total)),
      h("td.wide", null, when(one.first_started)),
      h("td.wide.right", null, duration(seconds)),
    );
  }

  function showFailed(name) {
    state.value = "FAILED";
    context.setQuery({ state: "FAILED", task: null });
    expand(name, false);
  }

  function shut() {
    context.setQuery({ task: null });
    draw();
  }

  function expand(name, scroll = true) {
    const another = query.get("task") !== name;
    context.setQuery({ task: name });
    if (another) {
      cursors = [null];
      fill(runsBody);
      runsBody.shown = undefined;
    }
    draw();
    runs.now();
    if (scroll) opened.previousElementSibling?.scrollIntoView({ block: "center" });
  }

  const runs = context.loader(async () => {
    const task = query.get("task");
    if (!task) return;
    const answer = await get(`runs/${part(id)}/task-runs`, { task, state: state.value, limit: ROWS, cursor: cursors.at(-1) }, context.signal);
    const found = items(answer);
    keyed(runsBody, found, (one) => one.seq, (one) =>
      h("tr", null,
        h("td.main-cell", null, h("button.link", { type: "button", onclick: () => open(one.seq) }, one.name)),
        h("td", null, badge(one.state, one.state_name)),
        h("td.wide", null, when(one.started_at)),
        h("td.right", null, took(one)),
        h("td.middle.right", null, number(one.attempts)),
        h("td.wide.message-cell", null, one.error?.message || one.message)));
    runsBox.hidden = !found.length;
    const total = list.find((one) => one.task === task)?.total ?? 0;
    const rest = state.value || answer.next_cursor || cursors.length > 1 ? 0 : total - found.length;
    fill(none, rest > 0 ? h("p.muted.small.rest", null, `${number(rest)} more ${rest === 1 ? "has" : "have"} not begun yet.`)
      : found.length ? null : empty("No task run is like that."));
    fill(pages, pager({
      label: "Pages of task runs",
      first: cursors.length === 1,
      next: Boolean(answer.next_cursor),
      onFirst: () => { cursors = [null]; runs.now(); },
      onNext: () => { cursors.push(answer.next_cursor); runs.now(); },
    }));
    pages.hidden = cursors.length === 1 && !answer.next_cursor;
  }, 2);

  async function open(seq) {
    try {
      const one = await get(`runs/${part(id)}/task-runs/${part(seq)}`, null, context.signal);
      context.setQuery({ open: String(seq) });
      const shown = dialog(one.name, detail(id, one, open, fork), { wide: true });
      shown.addEventListener("close", () => {
        if (!context.signal.aborted && query.get("open") === String(seq)) context.setQuery({ open: null });
      });
    } catch (error) {
      if (query.get("open")) context.setQuery({ open: null });
      complain(error);
    }
  }

  if (query.get("open")) open(query.get("open"));

  return {
    node: h("div", null, box, more),
    tools: [find, state],
    expand,
    open,
    show(tasks, isAgain) {
      list = tasks;
      draw();
      if (query.get("task")) {
        if (isAgain) runs.soon();
        else runs.now();
      }
    },
  };
}

function detail(id, one, open, fork) {
  const seqOf = (task) => task.slice(task.lastIndexOf("-") + 1);
  const jump = (task) =>
    h("button.link", {
      type: "button",
      onclick: (event) => {
        event.target.closest("dialog").close();
        open(seqOf(task));
      },
    }, `#${seqOf(task)}`);
  const upstream = one.upstream.slice(0, 20);
  return [
    facts([
      ["State", badge(one.state, one.state_name)],
      ["Task", one.task],
      ["Began", one.started_at ? when(one.started_at) : null],
      ["Duration", took(one)],
      ["Attempts", number(one.attempts)],
      ["Failures", one.failures ? number(one.failures) : null],
      ["Interruptions", one.interruptions ? number(one.interruptions) : null],
      ["Tags", one.tags?.length ? tags(one.tags) : null],
      ["Called by", one.parent_id ? jump(one.parent_id) : null],
      ["After", upstream.length ? [upstream.map((task) => [jump(task), " "]), one.upstream.length > 20 ? `and ${one.upstream.length - 20} more` : null] : null],
      ["Logs", h("a", { href: at(`runs/${part(id)}/logs`, { task_run: one.id }), onclick: (event) => event.target.closest("dialog").close() }, "of this task run")],
      ["Id", h("span.mono", null, shortId(one.id))],
    ]),
    one.message && !one.waits.length && !saysSame(one.message, one.error) ? h("p.message", null, one.message) : null,
    waitBanner(one.waits, id),
    one.error ? [h("h3", null, "Error"), failure(one.error)] : null,
    one.attempts_list?.length
      ? [h("h3", null, "Attempts that failed"),
          h("ol.attempts", null, one.attempts_list.slice(-30).map((a) =>
            h("li", null,
              h("p", null, h("strong", null, `Attempt ${a.attempt}`), " ended ", when(a.ended_at),
                a.retry_at ? [", next ", when(a.retry_at)] : null),
              failure(a.error))))]
      : null,
    h("h3", null, "Inputs"),
    one.inputs ? h("pre.code", { tabindex: "0", role: "region", "aria-label": "Inputs" }, one.inputs)
      : h("p.muted", null, "Not kept: they are too long for the record, or no plain values."),
    h("h3", null, "Result"),
    result(one.result),
    fork && one.started_at
      ? h("p", null, button("Fork from here…", (event) => {
          event.target.closest("dialog").close();
          fork(one.id);
        }, { kind: "small" }))
      : null,
  ];
}
