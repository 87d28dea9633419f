// What several pages are made of.

import { ApiError } from "./api.js";
import { fill, h, icon } from "./dom.js";
import { STATES, ago, duration, exactly, number, pretty, words } from "./format.js";

/** A state with its icon; the colour only supports what shape and word say. */
export function badge(state, name) {
  return h("span.badge", { dataset: { state } }, icon(state), words(name || state));
}

/** A time, seen from now; it is kept up to date. */
export function when(iso) {
  if (!iso) return h("span.muted", null, "–");
  return h("time", { datetime: iso, title: exactly(iso), dataset: { ago: "1" } }, ago(iso));
}

/** How long something took, or takes until now. */
export function took(row) {
  if (row.started_at && !row.ended_at && ["RUNNING", "CANCELLING"].includes(row.state)) {
    return h("span.num", { dataset: { since: row.started_at } }, duration(sinceThen(row.started_at)));
  }
  return h("span.num", null, duration(row.duration));
}

const sinceThen = (iso) => Math.max(0, (Date.now() - new Date(iso).getTime()) / 1000);

/** Once a second: what tells a time tells it anew. */
export function tick() {
  if (document.hidden) return;
  for (const node of document.querySelectorAll("[data-since]")) {
    setText(node, duration(sinceThen(node.dataset.since)));
  }
  for (const node of document.querySelectorAll("time[data-ago]")) {
    setText(node, ago(node.getAttribute("datetime")));
  }
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function tags(list) {
  return (list ?? []).map((tag) => h("span.tag", null, tag));
}

/** The address of a page of ours. */
export function at(path, query) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query ?? {})) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") search.append(name, one);
    }
  }
  const text = search.toString();
  return `#/${path}${text ? `?${text}` : ""}`;
}

export const runLink = (run, text) =>
  h("a", { href: at(`runs/${encodeURIComponent(run.id)}`) }, text ?? run.name);

export const shortId = (id) => (id ? id.slice(-12) : "");

export function button(text, onclick, props = {}) {
  const { kind = "", ...rest } = props;
  return h("button.button", { type: "button", class: kind, onclick, ...rest }, text);
}

export function iconButton(name, label, onclick, props = {}) {
  return h(
    "button.icon-button",
    { type: "button", "aria-label": label, title: label, onclick, ...props },
    icon(name),
  );
}

export function card(title, body, extra = null, props = {}) {
  return h(
    "section.card",
    props,
    h("header.card-head", null, h("h2", null, title), extra),
    body,
  );
}

/** A table; columns are [title, class]. The wide ones are left out where there is no room. */
export function table(label, columns, body) {
  return h(
    "div.table-box",
    { tabindex: "0", role: "region", "aria-label": label },
    h(
      "table",
      null,
      h(
        "thead",
        null,
        h("tr", null, columns.map(([title, name]) =>
          h("th", { scope: "col", class: name ?? "" }, title === "" ? h("span.sr", null, "Actions") : title),
        )),
      ),
      body,
    ),
  );
}

export const empty = (text, more) => h("div.empty", null, h("p", null, text), more);

export function json(value, label = "JSON") {
  return h("pre.code", { tabindex: "0", role: "region", "aria-label": label }, pretty(value));
}

/** A bar of what states there are how many of. */
export function stateBar(counts, total) {
  const whole = total || Object.values(counts).reduce((a, b) => a + b, 0) || 1;
  const said = STATES.filter((state) => counts[state]);
  const text = said.map((state) => `${number(counts[state])} ${words(state).toLowerCase()}`).join(", ");
  const bar = h("div.bar", { role: "img", "aria-label": text || "none", title: text });
  for (const state of said) {
    const piece = h("span", { dataset: { state } });
    piece.style.flexGrow = String(counts[state] / whole);
    bar.append(piece);
  }
  const known = said.reduce((sum, state) => sum + counts[state], 0);
  if (known < whole) {
    const rest = h("span", null);
    rest.style.flexGrow = String((whole - known) / whole);
    bar.append(rest);
  }
  return bar;
}

/** Newer and older pages of a list. */
export function pager({ first, next, onFirst, onNext, label }) {
  return h(
    "nav.pager",
    { "aria-label": label },
    button("First page", onFirst, { disabled: first }),
    button("Next page", onNext, { disabled: !next }),
  );
}

// --- messages ----------------------------------------------------------------------------------

const toasts = h("div.toasts", { role: "status", "aria-live": "polite" });

export const toastBox = () => toasts;

/**
 * Say something in the corner.
 * @param {any} text what `h` takes
 * @param {string} kind "bad" for errors; "lasting" for what leads somewhere; "waiting" stays until
 *   it is removed, or closed
 */
export function toast(text, kind = "") {
  const shut = () => made.remove();
  const line = h("p", null, text);
  const made = h(
    "div.toast",
    { class: kind, role: kind === "bad" ? "alert" : null },
    icon({ bad: "warn", waiting: "SCHEDULED" }[kind] ?? "COMPLETED"),
    line,
    iconButton("close", "Close", shut),
  );
  made.say = (other) => {
    if (line.textContent !== other) fill(line, other);
  };
  toasts.append(made);
  const passing = [...toasts.children].filter((one) => !one.classList.contains("waiting"));
  for (const old of passing.slice(0, -4)) old.remove();
  if (kind !== "waiting") setTimeout(shut, kind ? 12_000 : 5_000);
  return made;
}

/** Tell an error; what was only interrupted is none. */
export function complain(error) {
  if (error?.name === "AbortError" || (error instanceof ApiError && error.status === 401)) return;
  if (!(error instanceof ApiError)) console.error(error);
  const title = error instanceof ApiError ? error.title : "This page has a bug";
  toast(title && title !== error.message ? `${title}: ${error.message}` : error.message, "bad");
}

/** Do something that a button asks for; its errors are told. */
export async function attempt(work, done) {
  try {
    const said = await work();
    if (done) toast(done);
    return said ?? true;
  } catch (error) {
    complain(error);
    return null;
  }
}

/**
 * A dialog.
 * @param {string} title
 * @param {Node|Node[]} body
 * @param {object} options okay: the text of its button; danger; submit: does it, and gives whether
 *   the dialog is done with
 */
export function dialog(title, body, { okay = "OK", danger = false, submit = null, wide = false } = {}) {
  const back = document.activeElement;
  const node = h("dialog.dialog", { "aria-labelledby": "dialog-title", class: wide ? "broad" : "" });
  const problem = h("p.failure.dialog-problem", { role: "alert" });
  const go = submit
    ? h("button.button", { type: "submit", class: danger ? "danger" : "primary" }, okay)
    : null;
  const form = h(
    "form",
    {
      novalidate: true,
      onsubmit: async (event) => {
        event.preventDefault();
        if (!submit) return node.close();
        go.disabled = true;
        fill(problem);
        try {
          if (await submit()) node.close();
        } catch (error) {
          // Here, since a message at the edge of the page would be behind the dialog.
          if (error instanceof ApiError && error.status !== 401) fill(problem, error.message);
          else complain(error);
        } finally {
          go.disabled = false;
        }
        return undefined;
      },
    },
    h(
      "header.dialog-head",
      null,
      h("h2", { id: "dialog-title" }, title),
      iconButton("close", "Close", () => node.close()),
    ),
    h("div.dialog-body", null, body, problem),
    submit
      ? h("footer.dialog-foot", null, button("Cancel", () => node.close()), go)
      : null,
  );
  node.append(form);
  // Whoever goes to another page, such as by the button of the browser, leaves the dialog behind.
  const leave = () => node.close();
  addEventListener("hashchange", leave);
  node.addEventListener("close", () => {
    removeEventListener("hashchange", leave);
    node.remove();
    if (back?.isConnected) back.focus();
  });
  node.addEventListener("click", (event) => {
    if (event.target === node) node.close();
  });
  document.body.append(node);
  node.showModal();
  return node;
}

/** Ask before something that cannot be undone. */
export function confirm(title, text, okay, work) {
  dialog(title, h("p", null, text), { okay, danger: true, submit: work });
}

let numbered = 0;
/** A field with its label, help and message. */
export function field(label, control, { help = "", required = false } = {}) {
  numbered += 1;
  const id = `field-${numbered}`;
  control.id = id;
  const message = h("p.field-error", { id: `${id}-error`, role: "alert" });
  const about = help ? h("p.field-help", { id: `${id}-help` }, help) : null;
  control.setAttribute("aria-describedby", `${id}-error${help ? ` ${id}-help` : ""}`);
  if (required) control.setAttribute("aria-required", "true");
  const node = h(
    "div.field",
    { class: control.type === "checkbox" ? "check" : "" },
    h("label", { for: id }, label, required ? h("span.required", { "aria-hidden": "true" }, " *") : null),
    control,
    about,
    message,
  );
  node.complain = (text) => {
    fill(message, text);
    control.toggleAttribute("data-wrong", Boolean(text));
    control.setAttribute("aria-invalid", text ? "true" : "false");
  };
  return node;
}

/** Whether a message says no more than an error that is shown beside it. */
export const saysSame = (message, error) =>
  Boolean(error) && (message === error.message || message === `${error.type}: ${error.message}`);

/** The error of a run or task run. */
export function failure(error) {
  if (!error) return null;
  return h(
    "div.failure",
    null,
    h("p.failure-text", null, h("strong", null, error.type || "Error"), " ", withoutType(error)),
    error.traceback
      ? h("details", null, h("summary", null, "Traceback"),
          h("pre.code", { tabindex: "0", role: "region", "aria-label": "Traceback" }, error.traceback))
      : null,
  );
}

const withoutType = ({ type, message }) =>
  type && String(message).startsWith(`${type}: `) ? String(message).slice(type.length + 2) : message;

/** A result, as far as it is stored as JSON. */
export function result(found) {
  if (!found || found.kind === "none") return h("p.muted", null, "No result.");
  if (found.kind === "json") return json(found.value, "Result");
  const why = {
    pickle: "A Python object; it is not read here, since that would run its code.",
    file: "Stored in a file; it is not read here.",
    not_stored: "The result was not stored.",
  };
  return h("p.muted", null, why[found.kind] ?? String(found.kind));
}

/** Titles with values. */
export function facts(list) {
  return h(
    "dl.facts",
    null,
    list
      .filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false)
      .map(([title, value]) => h("div", null, h("dt", null, title), h("dd", null, value))),
  );
}
