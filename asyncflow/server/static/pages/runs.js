// All runs: filters in the address, pages by cursor, the same done to many.

import { get, items, mayAct, part, post } from "../api.js";
import { tellEnds } from "../asked.js";
import { fill, h, icon, keyed } from "../dom.js";
import { FINAL, STATES, number, words } from "../format.js";
import { at, badge, button, complain, confirm, empty, iconButton, pager, runLink, table, tags, toast, took, when } from "../parts.js";

const NAMES = ["TimedOut", "AwaitingRetry", "NeedsAttention", "Interrupted", "Suspended"];
const FILTERS = ["flow", "deployment", "tag"];

export function runs(context) {
  context.title("Runs");
  const { query } = context;
  const chosen = new Map();
  let shown = [];
  let next = null;

  const states = () => query.getAll("state");
  const filter = () => ({
    state: states(),
    flow: query.get("flow"),
    tag: query.getAll("tag"),
    deployment: query.get("deployment"),
    since: query.get("since"),
    parent: query.get("parent"),
    text: query.get("text"),
  });

  const change = (changes) => {
    context.setQuery({ cursor: null, ...changes });
    chosen.clear();
    showFilters();
    loader.now();
  };

  // --- filters ---------------------------------------------------------------------------------

  let typing = 0;
  const typed = (name, props) => {
    const control = h("input", {
      type: "search", name, autocomplete: "off", spellcheck: "false", value: query.get(name) ?? "", ...props,
      oninput: () => {
        clearTimeout(typing);
        typing = setTimeout(() => change({ [name]: control.value.trim() }), 250);
      },
    });
    return control;
  };
  context.signal.addEventListener("abort", () => clearTimeout(typing));
  const text = typed("text", { placeholder: "Search names and messages", "aria-label": "Search names and messages", "data-filter": "", class: "grow" });
  const others = FILTERS.map((name) =>
    typed(name, { placeholder: words(name), "aria-label": words(name), class: "narrow" }),
  );
  const state = h(
    "select",
    { "aria-label": "State", onchange: () => change({ state: state.value }) },
    h("option", { value: "" }, "Any state"),
    h("option", { value: "not_completed" }, "Not completed"),
    h("optgroup", { label: "States" }, STATES.map((one) => h("option", { value: one }, words(one)))),
    h("optgroup", { label: "More exactly" }, NAMES.map((one) => h("option", { value: one }, words(one)))),
    h("option", { value: "several", hidden: true }, "Several"),
  );
  const unfinished = h(
    "button.button.toggle",
    {
      type: "button",
      onclick: () => change({ state: states().includes("not_completed") ? null : "not_completed" }),
    },
    "Not completed",
  );
  const children = h("input", {
    type: "checkbox",
    onchange: () => change({ parent: children.checked ? "any" : null }),
  });
  const chips = h("div.chips");

  function showFilters() {
    const now = states();
    state.value = now.length > 1 ? "several" : (now[0] ?? "");
    if (state.selectedIndex < 0) state.value = "several";
    unfinished.setAttribute("aria-pressed", String(now.includes("not_completed")));
    children.checked = query.get("parent") === "any";
    const several = now.length > 1 ? now.map((one) => chip(words(one), () => change({ state: now.filter((x) => x !== one) }))) : [];
    const since = query.get("since");
    fill(chips, several, since ? chip(["Since ", when(since)], () => change({ since: null })) : null,
      query.get("parent") && query.get("parent") !== "any" ? chip("Children of one run", () => change({ parent: null })) : null);
    chips.hidden = !chips.children.length;
  }

  // --- the table -------------------------------------------------------------------------------

  const body = h("tbody");
  const none = h("div");
  const all = h("input", {
    type: "checkbox",
    "aria-label": "Choose all of this page",
    onchange: () => {
      for (const run of shown) {
        if (all.checked) chosen.set(run.id, run);
        else chosen.delete(run.id);
      }
      showChoice();
    },
  });
  const box = table("Runs", [
    ["", "tick"], ["State"], ["Run"], ["Deployment", "wide"], ["Tags", "wide"], ["Started", "middle"], ["Duration", "right"],
  ], body);
  const corner = box.querySelector("th");
  if (mayAct()) fill(corner, all);

  function row(run) {
    return h(
      "tr",
      { dataset: { run: run.id } },
      h("td.tick", null, mayAct()
        ? h("input", {
            type: "checkbox", "aria-label": `Choose ${run.name}`, checked: chosen.has(run.id), dataset: { id: run.id },
            onchange: (event) => {
              if (event.target.checked) chosen.set(run.id, run);
              else chosen.delete(run.id);
              showChoice();
            },
          })
        : null),
      h("td", null, badge(run.state, run.state_name)),
      h("td.main-cell", null, runLink(run),
        h("span.sub", null, about(run))),
      h("td.wide", null, run.deployment
        ? h("a.quiet", { href: at(`deployments/${part(run.deployment)}`) }, run.deployment)
        : null),
      h("td.wide", null, tags(run.tags.slice(0, 3)), run.tags.length > 3 ? h("span.muted", null, ` +${run.tags.length - 3}`) : null),
      h("td.middle", null, when(run.started_at ?? run.scheduled_at ?? run.created_at)),
      h("td.right", null, took(run)),
    );
  }

  const pages = h("div");
  const loader = context.loader(async () => {
    const answer = await get("runs", { ...filter(), cursor: query.get("cursor"), limit: 50 }, context.signal);
    shown = items(answer);
    next = answer.next_cursor ?? null;
    keyed(body, shown, (run) => run.id, row);
    const isFiltered = ["state", "flow", "tag", "deployment", "since", "text"].some((name) => query.get(name));
    fill(none, shown.length ? null : empty(
      isFiltered ? "No run is like that." : "No flow has run yet.",
      isFiltered ? h("a.button", { href: "#/runs" }, "Show all runs") : null,
    ));
    box.hidden = !shown.length;
    fill(pages, pager({
      label: "Pages of runs",
      first: !query.get("cursor"),
      next: next !== null,
      onFirst: () => change({ cursor: null }),
      onNext: () => change({ cursor: next }),
    }));
    pages.hidden = !query.get("cursor") && next === null;
    showChoice();
  }, 3);

  context.onLive((message) => {
    if (message.missed || message.events.some((event) => String(event.kind ?? "flow-run").startsWith("flow-run"))) loader.soon();
  });

  // --- the same to many ------------------------------------------------------------------------

  const choice = h("div.choice", { hidden: true, role: "region", "aria-label": "What is chosen" });

  function showChoice() {
    const here = shown.filter((run) => chosen.has(run.id)).length;
    all.checked = shown.length > 0 && here === shown.length;
    all.indeterminate = here > 0 && here < shown.length;
    for (const tick of body.querySelectorAll("input[data-id]")) tick.checked = chosen.has(tick.dataset.id);
    choice.hidden = chosen.size === 0;
    if (!chosen.size) return;
    const list = [...chosen.values()];
    const act = (name, able) =>
      button(words(name), () => ask(name, list.filter(able)), {
        disabled: !list.some(able),
        kind: name === "delete" ? "small danger-text" : "small",
      });
    fill(
      choice,
      h("strong", null, `${number(chosen.size)} chosen`),
      act("cancel", (run) => !FINAL.has(run.state)),
      act("resume", (run) => ["FAILED", "CRASHED", "CANCELLED", "PAUSED"].includes(run.state)),
      act("delete", (run) => FINAL.has(run.state)),
      all.checked && (next !== null || query.get("cursor"))
        ? h("span.all-of", null, "or all that the filter finds:",
            ["cancel", "resume", "delete"].map((name) => button(words(name), () => askAll(name), { kind: "small" })))
        : null,
      h("span.spring"),
      iconButton("close", "Choose none", () => {
        chosen.clear();
        showChoice();
      }),
    );
  }

  function ask(name, list) {
    const many = `${number(list.length)} ${list.length === 1 ? "run" : "runs"}`;
    confirm(`${words(name)} ${many}?`, SAID[name], `${words(name)} ${many}`, async () => {
      const failed = [];
      const asked = [];
      const waiting = [...list];
      const worker = async () => {
        for (let run = waiting.shift(); run; run = waiting.shift()) {
          try {
            const said = await post(`runs/${part(run.id)}/${name}`, { expected_state: run.state });
            if (said?.command) asked.push(said.command);
          } catch (error) {
            failed.push(`${run.name}: ${error.message}`);
          }
        }
      };
      await Promise.all([worker(), worker(), worker(), worker()]);
      tell(name, list.length - failed.length - asked.length, failed, asked);
      return true;
    });
  }

  function askAll(name) {
    confirm(
      `${words(name)} all runs that the filter finds?`,
      `${SAID[name]} At most 500 at a time, newest first.`,
      `${words(name)} all`,
      async () => {
        const sent = Object.fromEntries(Object.entries(filter()).filter(([, value]) => value !== null && value !== "" && value.length !== 0));
        const said = await post("runs/bulk", { action: name, filter: sent, limit: 500 });
        tell(name, said.done, said.failed.map((one) => one.detail), said.asked ?? []);
        return true;
      },
    );
  }

  function tell(name, done, failed, asked) {
    chosen.clear();
    loader.now();
    if (!asked.length) say(name, done, failed);
    else tellEnds(asked, (more, others) => {
      say(name, done + more, [...failed, ...others]);
      loader.soon();
    });
  }

  function say(name, done, failed) {
    toast(`${words(name)}: ${number(done)} done${failed.length ? `, ${number(failed.length)} not: ${failed[0]}` : ""}.`, failed.length ? "bad" : "");
  }

  showFilters();
  loader.now().catch(complain);

  return h(
    "div.page",
    null,
    h("header.page-head", null, h("h1", null, "Runs")),
    h("div.filters", { role: "search" }, text, state, unfinished, others,
      h("label.inline", null, children, "with child runs")),
    chips,
    choice,
    box,
    none,
    pages,
  );
}

const about = (run) =>
  [run.flow === run.name ? "" : run.flow, run.state === "COMPLETED" ? "" : run.message].filter(Boolean).join(" · ");

const SAID = {
  cancel: "They are told to stop; what they clean up still runs.",
  resume: "They go on: what has completed does not run again.",
  delete: "They are removed with their task runs, logs and artifacts. This cannot be undone.",
};

function chip(text, onclose) {
  return h("span.chip", null, text, h("button", { type: "button", "aria-label": "Remove this filter", onclick: onclose }, icon("close")));
}
