// What a run has put down for people: texts, tables, links, pictures, progress.

import { get, items, part } from "../api.js";
import { fill, fromHtml, h, keyed, safeHref } from "../dom.js";
import { number, pretty, words } from "../format.js";
import { card, empty, table, when } from "../parts.js";

const ROWS = 100;
const COLUMNS = 12;

export function artifacts(context, id) {
  const list = h("div.stack");
  const none = h("div");
  const loader = context.loader(async () => {
    const found = items(await get(`runs/${part(id)}/artifacts`, null, context.signal));
    keyed(list, found.slice(0, 40), (one) => one.id, draw);
    fill(none, found.length ? null : empty("This run has put down nothing."),
      found.length > 40 ? h("p.muted", null, `The first 40 of ${found.length}.`) : null);
  }, 2);
  loader.now();
  return { node: h("div", null, list, none), live: loader.soon };
}

function draw(one) {
  return card(one.key || words(one.kind.toUpperCase()), [one.description ? h("p.muted.about", null, one.description) : null, content(one)],
    h("span.muted.small", null, when(one.updated_at ?? one.created_at)));
}

function content(one) {
  const { data } = one;
  if (one.kind === "markdown") {
    return typeof one.html === "string" ? h("div.prose", null, fromHtml(one.html)) : h("pre.code", null, textOf(own(data, "markdown", "text")));
  }
  if (one.kind === "table") return rows(data);
  if (one.kind === "link") return link(own(data, "url", "link"), own(data, "text", "link_text", ""));
  if (one.kind === "image") return image(data ?? {}, one.description || one.key || "picture");
  if (one.kind === "progress") return progress(data);
  return h("pre.code", null, textOf(data));
}

/** What an object has by one of two names; of plain text, the text itself. */
function own(data, name, other, without = data) {
  if (typeof data !== "object" || data === null) return without;
  return data[name] ?? data[other] ?? "";
}

const textOf = (data) => (typeof data === "string" ? data : pretty(data));

function link(address, text) {
  const safe = safeHref(String(address ?? ""));
  return safe ? h("a", { href: safe, rel: "noopener noreferrer nofollow", target: "_blank" }, text || safe) : h("span", null, String(text || address));
}

/** Only pictures that are in the artifact itself are shown: others would tell who looks. */
function image(data, text) {
  const found = `data:${data.mime};base64,${data.base64}`;
  if (!/^data:image\/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+$/.test(found)) {
    return h("p", null, "A picture elsewhere, which is not loaded here: ", link(data.url, data.url));
  }
  const made = document.createElement("img");
  made.src = found;
  made.alt = text;
  return made;
}

/** How far something is, with a bar where its end is known. */
export function progress(data, label = "Progress") {
  const done = Number(data?.done ?? 0);
  const message = data?.message ? h("p.muted", null, data.message) : null;
  if (data?.total === null || data?.total === undefined) {
    return [message, h("p", null, `${number(done)} done, of how many is not known`)];
  }
  const total = Number(data.total) || 1;
  const share = Math.max(0, Math.min(1, done / total));
  const bar = h("div.progress", { role: "progressbar", "aria-label": label, "aria-valuenow": Math.round(share * 100), "aria-valuemin": "0", "aria-valuemax": "100" }, h("span"));
  bar.firstElementChild.style.width = `${share * 100}%`;
  return [message, h("div.progress-row", null, bar, h("span.num", null, `${number(done)} / ${number(data.total)}`))];
}

function rows(data) {
  let found = Array.isArray(data) ? data : (data?.rows ?? []);
  let columns = data?.columns ?? null;
  if (found.length && !Array.isArray(found[0]) && typeof found[0] === "object") {
    columns ??= [...new Set(found.slice(0, ROWS).flatMap((row) => Object.keys(row ?? {})))];
    found = found.map((row) => columns.map((name) => row?.[name]));
  } else if (!Array.isArray(data) && data && !data.rows && typeof data === "object") {
    columns = Object.keys(data);
    const lengths = columns.map((name) => (Array.isArray(data[name]) ? data[name].length : 1));
    found = Array.from({ length: Math.max(0, ...lengths) }, (_, i) => columns.map((name) => (Array.isArray(data[name]) ? data[name][i] : data[name])));
  }
  const head = (columns ?? (found[0] ?? []).map((_, i) => String(i + 1))).slice(0, COLUMNS);
  const isNumeric = head.map((_, i) => found.slice(0, 20).every((row) => typeof row?.[i] === "number"));
  const cells = Math.max(1, Math.min(ROWS, Math.floor(1200 / Math.max(1, head.length))));
  const body = h("tbody", null, found.slice(0, cells).map((row) =>
    h("tr", null, (Array.isArray(row) ? row : [row]).slice(0, COLUMNS).map((cell, i) =>
      h("td", { class: isNumeric[i] ? "right" : "" }, cell === null || cell === undefined ? "" : textOf(cell).slice(0, 500))))));
  return [
    table("Table", head.map((name, i) => [String(name) || " ", isNumeric[i] ? "right" : ""]), body),
    h("p.muted.small", { hidden: found.length <= cells && !data?.total_rows && !data?.total_columns && (columns ?? []).length <= COLUMNS },
      `${number(Math.min(cells, found.length))} of ${number(data?.total_rows ?? found.length)} rows and ${number(head.length)} of ${number(data?.total_columns ?? columns?.length ?? head.length)} columns are shown.`),
  ];
}
