// One run: what it is, when its task runs ran, how they hang together, its logs and artifacts.

import { get, mayAct, part, post, session } from "../api.js";
import { tellEnd } from "../asked.js";
import { fill, h, keyed } from "../dom.js";
import { FINAL, bytes, number, pretty, shortTime } from "../format.js";
import { graph } from "../graph.js";
import { asJson, form, same } from "../schema.js";
import { taskTable } from "../tasks.js";
import { timeline } from "../timeline.js";
import { waitBanner } from "../waits.js";
import {
  at, attempt, badge, button, card, complain, confirm, dialog, facts, failure, field, json, result,
  runLink, saysSame, shortId, table, tags, toast, took, when,
} from "../parts.js";
import { artifacts, progress } from "./artifacts.js";
import { logs } from "./logs.js";

const TABS = [["", "Overview"], ["logs", "Logs"], ["artifacts", "Artifacts"]];
// The run that was shown last: its other tabs have its head at once.
let last = null;

export function run(context) {
  const [, id, tab = ""] = context.parts;
  context.title(`Run ${shortId(id)}`);
  const head = h("div.run-head");
  const banner = h("div.banners");
  const body = h("div.run-body");
  let found = null;
  let gone = false;

  const loader = context.loader(async () => {
    try {
      show(await get(`runs/${part(id)}`, null, context.signal));
    } catch (error) {
      if (error.status === 404) {
        // It may have been there a moment ago.
        last = null;
        gone = true;
        fill(banner);
        fill(head, h("h1", null, "There is no such run"));
        fill(body, h("p", null, "It was deleted, or never was. ", h("a", { href: "#/runs" }, "All runs")));
        return;
      }
      throw error;
    }
  }, 2);

  let view;
  if (tab === "logs") view = logs(context, id, () => found);
  else if (tab === "artifacts") view = artifacts(context, id);
  else if (tab === "") view = overview(context, id);
  else view = { node: h("p", null, "There is no such tab."), show() {} };
  fill(body, view.node);

  function show(next) {
    const before = found;
    found = next;
    last = next;
    context.title(next.name);
    const print = JSON.stringify({ ...next, duration: null, tasks: null });
    if (show.print !== print) {
      show.print = print;
      showHead(head, next, loader);
      fill(banner, banners(next));
    }
    view.show?.(next, before);
  }

  if (last?.id === id) show(last);
  if (tab === "" || last?.id !== id) loader.now();
  else loader.soon();
  context.onLive((message) => {
    if (!gone && (message.missed || message.events.some((event) => event.run_id === id))) {
      loader.soon();
      view.live?.();
    }
  });
  context.every(5, () => {
    if (found && !gone && !FINAL.has(found.state)) loader.soon();
  });

  return h(
    "div.page",
    null,
    head,
    banner,
    h("nav.tabs", { "aria-label": "About this run" },
      TABS.map(([name, title]) =>
        h("a", { href: at(`runs/${part(id)}${name ? `/${name}` : ""}`), "aria-current": name === tab ? "page" : null }, title))),
    body,
  );
}

// --- the head ----------------------------------------------------------------------------------

function showHead(head, run, loader) {
  const parent = run.parent_id
    ? h("a", { href: at(`runs/${part(run.parent_id)}`) }, "parent run")
    : null;
  fill(
    head,
    h("p.crumbs", null, h("a", { href: "#/runs" }, "Runs"), " / ",
      h("a", { href: at("runs", { flow: run.flow }) }, run.flow), parent ? [" / ", parent] : null),
    h("header.page-head", null,
      h("h1", null, run.name),
      badge(run.state, run.state_name),
      h("span.spring"),
      mayAct() ? h("div.actions", null, actions(run, loader)) : null),
    run.message && !saysSame(run.message, run.error) && !run.waits.length ? h("p.message", null, run.message) : null,
    facts([
      ["Began", run.started_at ? when(run.started_at) : null],
      ["Planned for", run.scheduled_at ? when(run.scheduled_at) : null],
      ["Created", run.started_at ? null : when(run.created_at)],
      ["Duration", run.started_at ? took(run) : null],
      ["Deployment", run.deployment ? h("a", { href: at(`deployments/${part(run.deployment)}`) }, run.deployment) : null],
      ["Cause", run.cause],
      ["Attempt", run.attempt > 1 ? number(run.attempt) : null],
      ["Recoveries", run.recoveries ? number(run.recoveries) : null],
      ["Version", run.version],
      ["Made from", run.origin ? h("a", { href: at(`runs/${part(run.origin)}`) }, shortId(run.origin)) : null],
      ["Key", run.idempotency_key],
      ["Tags", run.tags.length ? tags(run.tags) : null],
      ["Id", h("button.copy", {
        type: "button",
        title: "Copy",
        onclick: () => navigator.clipboard?.writeText(run.id).then(() => toast("Copied."), complain),
      }, run.id)],
    ]),
  );
}

function actions(run, loader) {
  const final = FINAL.has(run.state);
  const code = session.embedded ? {} : { title: "An engine that has its code does it: asyncflow serve, or your service" };
  const act = (name, done) => async (event) => {
    const pressed = event?.currentTarget;
    if (pressed) pressed.disabled = true;
    const said = await attempt(() => post(`runs/${part(run.id)}/${name}`, { expected_state: run.state }));
    if (said) await tellEnd(said, done);
    if (pressed) pressed.disabled = false;
    loader.now();
  };
  return [
    run.asks
      ? button("Answer…", () => answer(run, loader), { kind: "primary" })
      : null,
    final ? null : button("Cancel", () =>
      confirm("Cancel this run?", "It is told to stop; what it cleans up still runs.", "Cancel the run", async () => {
        await act("cancel", "It is being cancelled.")();
        return true;
      })),
    ["FAILED", "CRASHED", "CANCELLED", "PAUSED"].includes(run.state) && !run.asks && !run.parent_id
      ? button(run.state_name === "NeedsAttention" ? "Try again" : "Resume", act("resume", "It goes on."), { kind: "primary", ...code })
      : null,
    button("Run again…", () => again(run, "rerun"), code),
    button("Fork…", () => again(run, "fork"), code),
    final
      ? button("Delete", () =>
          confirm("Delete this run?", "It goes with its task runs, logs and artifacts. This cannot be undone.", "Delete the run", async () => {
            await post(`runs/${part(run.id)}/delete`, { expected_state: run.state });
            toast("It was deleted.");
            location.hash = "#/runs";
            return true;
          }), { kind: "danger-text" })
      : null,
  ];
}

/** Ask for the answer that a run waits for, by a form where it says what it wants. */
export async function answer(run, loader) {
  let schema = null;
  try {
    schema = (await get(`runs/${part(run.id)}/forms`)).answer;
  } catch (error) {
    complain(error);
    return;
  }
  const goOn = (path, body) => async () => {
    const said = await post(`runs/${part(run.id)}/${path}`, body);
    tellEnd(said, "It goes on.").then(loader.now);
    return true;
  };
  if (schema === null) {
    dialog("Let it go on?", h("p", null, "It asks for nothing but that somebody says so."), {
      okay: "Go on", submit: goOn("resume", { expected_state: run.state }),
    });
    return;
  }
  const input = byForm(schema) ?? asText("Answer, as JSON", {});
  dialog(schema.title ? `Answer: ${schema.title}` : "Answer", [
    schema.description ? h("p.muted", null, schema.description) : null, input.node,
  ], {
    okay: "Send",
    async submit() {
      const data = input.read();
      return data === null ? false : goOn("answer", { data })();
    },
  });
}

/** A form out of a schema, with what is set already; null where there is none that helps. */
function byForm(schema, given = {}) {
  return schema?.properties && Object.keys(schema.properties).length ? form(schema, given) : null;
}

/** The same as one text of JSON. */
function asText(label, value, help) {
  const text = h("textarea.mono", { rows: "10", spellcheck: "false", value: pretty(value) });
  const node = field(label, text, { help });
  return {
    node,
    read() {
      try {
        node.complain("");
        return asJson(text.value, { type: "object" });
      } catch (error) {
        node.complain(error.message);
        text.focus();
        return null;
      }
    },
  };
}

/**
 * Run it again, or fork it, with other parameters; only those that were changed are sent.
 * @param {string} from a task, or the id of a task run, from which a fork runs everything again
 */
export async function again(run, how, from = "") {
  const { parameters } = run;
  let schema = null;
  try {
    schema = (await get(`runs/${part(run.id)}/forms`)).parameters;
  } catch (error) {
    complain(error);
    return;
  }
  // What the run was given besides, or is not described, can be changed as a text only.
  const known = schema && Object.keys(parameters).every((name) => Object.hasOwn(schema.properties ?? {}, name));
  const input = (known && byForm(schema, parameters)) || (Object.keys(parameters).length ? asText("Parameters, as JSON", parameters) : null);
  const isTaskRun = from.includes("-");
  const choice = h("select", null, h("option", { value: "" }, "what has changed"),
    isTaskRun ? h("option", { value: from }, `#${from.slice(from.lastIndexOf("-") + 1)}, and all that was made after it`) : null,
    run.tasks.map((one) => h("option", { value: one.task }, one.task)));
  choice.value = from;
  dialog(how === "fork" ? "Fork this run" : "Run again", [
    h("p.muted", null, how === "fork"
      ? "A new run that takes over what this one has recorded: only what depends on a change runs again."
      : "A new run of the same flow, from the beginning.",
      input ? " What stays as it is, is taken from this run; so are values that are hidden here." : null),
    input?.node ?? h("p.muted", null, "It takes no parameters."),
    how === "fork" ? field("Run again from", choice) : null,
  ], {
    okay: how === "fork" ? "Fork" : "Run again",
    wide: true,
    async submit() {
      const given = input ? input.read() : {};
      if (given === null) return false;
      if (!known && input) {
        const gone = Object.keys(parameters).filter((name) => !Object.hasOwn(given, name));
        if (gone.length) {
          input.node.complain(`${gone.join(", ")}: a parameter of this run cannot be left out`);
          return false;
        }
      }
      const changed = Object.fromEntries(Object.entries(given).filter(([name, value]) => !same(value, parameters[name])));
      const body = { parameters: Object.keys(changed).length ? changed : null };
      if (how === "fork" && choice.value) body.from_task = choice.value;
      const said = await post(`runs/${part(run.id)}/${how}`, body);
      tellEnd(said, how === "fork" ? "It was forked." : "It runs again.", { go: true });
      return true;
    },
  });
}

function banners(run) {
  const moves = run.state === "RUNNING" && run.tasks.some((one) => one.counts.RUNNING);
  return [waitBanner(run.waits, run.id, moves ? "What it waits for" : undefined), run.error ? failure(run.error) : null];
}

// --- overview ----------------------------------------------------------------------------------

function overview(context, id) {
  const time = timeline(context.signal, (seq) => tasks.open(seq));
  const cut = h("p.muted.small", { hidden: true });
  const picture = graph((name) => tasks.expand(name));
  let run = null;
  const tasks = taskTable(context, id, mayAct() ? (taskRun) => again(run, "fork", taskRun) : null);
  const told = h("div.stack-small");
  const toldCard = card("Progress", told, h("a.more", { href: at(`runs/${part(id)}/artifacts`) }, "Artifacts"));
  const timeCard = card("Timeline", [time.node, cut], time.tools);
  const graphCard = card("Graph", picture.node);
  const taskCard = card("Tasks", tasks.node, tasks.tools);
  const story = h("ol.story");
  const children = h("tbody");
  const childCard = card("Child runs", table("Child runs", [["State"], ["Run"], ["Began", "middle"], ["Duration", "right"]], children));
  const parameters = h("div");
  const outcome = h("div");
  let most = 2000;
  timeCard.hidden = graphCard.hidden = taskCard.hidden = childCard.hidden = toldCard.hidden = true;

  const spans = context.loader(async () => {
    const found = await get(`runs/${part(id)}/timeline`, { limit: most }, context.signal).catch((error) => {
      if (error.status !== 404) throw error;
      return { spans: [], tasks: [], start: new Date().toISOString(), total: 0, cut: false };
    });
    timeCard.hidden = !found.spans.length;
    time.show(found);
    // Those that never began have no span, and are not missing.
    cut.hidden = !found.cut || found.spans.length < most;
    fill(cut, `The first ${number(found.spans.length)} of ${number(found.total)} task runs. `,
      most < 10_000
        ? button("Show more", () => { most = 10_000; spans.now(); }, { kind: "small" })
        : null);
  }, 8);
  spans.now();

  return {
    node: h("div.stack", null, toldCard, timeCard, graphCard, taskCard, childCard,
      h("div.grid.two", null, card("Parameters", parameters), card("Result", outcome)),
      card("Story", story)),
    show(now, before) {
      run = now;
      toldCard.hidden = !run.progress.length;
      keyed(told, run.progress, (one) => `${one.name} ${one.seq}`, (one) => {
        const name = one.name ?? (one.seq === null ? run.name : `#${one.seq}`);
        return h("div", null, h("strong", null, name), progress(one, `Progress of ${name}`));
      });
      const total = run.tasks.reduce((sum, one) => sum + one.total, 0);
      taskCard.hidden = total === 0;
      graphCard.hidden = run.tasks.length < 2;
      if (!graphCard.hidden) picture.show(run.tasks, run.edges);
      tasks.show(run.tasks, before && before.id === run.id);
      if (before && !same(before.tasks, run.tasks)) spans.soon();
      const own = Array.isArray(run.children) ? run.children : [];
      childCard.hidden = !own.length;
      keyed(children, own.slice(0, 20), (one) => one.id, (one) =>
        h("tr", null, h("td", null, badge(one.state, one.state_name)),
          h("td.main-cell", null, runLink(one), one.flow === one.name ? null : h("span.sub", null, one.flow)),
          h("td.middle", null, when(one.started_at ?? one.created_at)), h("td.right", null, took(one))));
      once(parameters, run.parameters, () => Object.keys(run.parameters ?? {}).length
        ? json(run.parameters, "Parameters") : h("p.muted", null, "It takes none."));
      once(outcome, run.result, () => [result(run.result), run.result?.bytes > 2000 ? h("p.muted.small", null, bytes(run.result.bytes)) : null]);
      keyed(story, run.story.slice(-60), (one) => one.time + one.state_name, (one) =>
        h("li", null, h("span.story-time", { title: one.time }, shortTime(one.time)), badge(one.state, one.state_name),
          one.message ? h("span.muted.text", null, one.message) : null));
    },
  };
}

function once(node, value, make) {
  const print = JSON.stringify(value);
  if (node.print === print) return;
  node.print = print;
  fill(node, make());
}
