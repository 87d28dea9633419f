// A form out of the JSON schema of parameters, and what was typed into it as values.

import { h } from "./dom.js";
import { pretty } from "./format.js";
import { field } from "./parts.js";

/** What a schema comes to: references followed, `T | None` as T that may be left empty. */
export function plain(schema, root, depth = 0) {
  let found = schema === true || !schema ? {} : schema;
  if (depth > 8) return found;
  if (typeof found.$ref === "string" && found.$ref.startsWith("#/")) {
    const { $ref, ...beside } = found;
    let target = root;
    for (const key of $ref.slice(2).split("/")) target = target?.[key.replaceAll("~1", "/").replaceAll("~0", "~")];
    return plain({ ...(target ?? {}), ...beside }, root, depth + 1);
  }
  const choices = found.anyOf ?? found.oneOf;
  if (Array.isArray(choices)) {
    const others = choices.filter((one) => one.type !== "null");
    const { anyOf, oneOf, ...beside } = found;
    if (others.length === 1) {
      return { ...plain({ ...others[0], ...beside }, root, depth + 1), nullable: others.length < choices.length };
    }
    return { ...beside, nullable: others.length < choices.length };
  }
  if (Array.isArray(found.allOf) && found.allOf.length === 1) {
    const { allOf, ...beside } = found;
    return plain({ ...allOf[0], ...beside }, root, depth + 1);
  }
  if (Array.isArray(found.type)) {
    const types = found.type.filter((type) => type !== "null");
    found = { ...found, nullable: types.length < found.type.length };
    if (types.length === 1) found.type = types[0];
    else delete found.type;
  }
  return found;
}

/**
 * A form.
 * @param {object} schema of an object, whose properties are the parameters
 * @param {object} given values that are there already; what stays as it is, is not sent
 * @returns {{node: Node, read: function(): object|null}} `read` gives what was changed, or null
 *   after it has told what is wrong
 */
export function form(schema, given = {}) {
  const properties = schema?.properties ?? {};
  const required = new Set(schema?.required ?? []);
  const inputs = Object.entries(properties).map(([name, declared]) =>
    input(name, plain(declared, schema), given, required.has(name)),
  );
  const node = h("div.form", null, inputs.map((one) => one.node));
  if (!inputs.length) node.append(h("p.muted", null, "It takes no parameters."));
  return {
    node,
    read() {
      const values = {};
      let wrong = null;
      for (const one of inputs) {
        let said;
        try {
          said = one.read();
          one.node.complain("");
        } catch (error) {
          one.node.complain(error.message);
          wrong ??= one;
          continue;
        }
        if (said !== undefined) values[one.name] = said;
      }
      if (wrong) {
        wrong.control.focus();
        return null;
      }
      return values;
    },
  };
}

const KINDS = { integer: "whole number", number: "number", string: "text", boolean: "yes or no", array: "JSON list", object: "JSON object" };

function input(name, schema, given, isRequired) {
  const has = Object.hasOwn(given, name);
  const start = has ? given[name] : schema.default;
  const isSet = has || Object.hasOwn(schema, "default");
  const required = isRequired && !has;
  const choices = schema.enum ?? (Object.hasOwn(schema, "const") ? [schema.const] : null);
  const help = [
    schema.description,
    schema.format && `Format: ${schema.format}.`,
    !choices && !schema.type && "Any JSON.",
    !choices && ["array", "object"].includes(schema.type) && `As JSON (${KINDS[schema.type]}).`,
    !required && !isSet && "May be left empty.",
  ].filter(Boolean).join(" ");
  let control;
  let read;
  if (choices) {
    const texts = choices.map((one) => (typeof one === "string" ? one : JSON.stringify(one)));
    control = h(
      "select",
      { name },
      isSet && choices.some((one) => same(one, start)) ? null : h("option", { value: "" }, isSet || !required ? "–" : "choose…"),
      texts.map((text, i) => h("option", { value: String(i) }, text)),
    );
    const at = choices.findIndex((one) => same(one, start));
    control.value = isSet && at >= 0 ? String(at) : "";
    read = () => (control.value === "" ? nothing(required) : choices[Number(control.value)]);
  } else if (schema.type === "boolean" && !schema.nullable) {
    control = h("input", { type: "checkbox", name, checked: start === true });
    read = () => control.checked;
  } else if (schema.type === "integer" || schema.type === "number") {
    control = h("input", { type: "text", name, inputmode: "decimal", autocomplete: "off", value: typeof start === "number" ? String(start) : "" });
    read = () => (control.value.trim() === "" ? cleared(schema, isSet, required) : asNumber(control.value.trim(), schema));
  } else if (schema.type === "string") {
    const long = typeof start === "string" && start.includes("\n");
    control = h(long ? "textarea" : "input", {
      ...(long ? { rows: "4" } : { type: schema.format === "password" || schema.writeOnly ? "password" : "text" }),
      name, autocomplete: "off", spellcheck: "false", placeholder: example(schema),
      value: typeof start === "string" ? start : "",
    });
    read = () => {
      if (control.value === "" && required && !schema.nullable) return nothing(true);
      if (control.value === "" && (!isSet || start === null) && !required) return undefined;
      if (control.value === "" && schema.nullable) return null;
      return asText(control.value, schema);
    };
  } else {
    control = h("textarea.mono", { name, rows: "4", spellcheck: "false", value: isSet ? pretty(start) : "" });
    read = () => (control.value.trim() === "" ? cleared(schema, isSet, required) : asJson(control.value, schema));
  }
  const label = schema.title && schema.title.toLowerCase() !== name.replaceAll("_", " ").toLowerCase() ? `${name} (${schema.title})` : name;
  return {
    name,
    control,
    node: field(label, control, { help, required }),
    read() {
      const value = read();
      // What is as it was is left to the server: it knows it unmasked.
      return value !== undefined && isSet && !required && same(value, start) ? undefined : value;
    },
  };
}

function nothing(required) {
  if (required) throw new Error("It must be given.");
  return undefined;
}

function cleared(schema, isSet, required) {
  if (!isSet || required) return nothing(required);
  if (schema.nullable) return null;
  throw new Error("It cannot be empty.");
}

function example(schema) {
  return { "date-time": "2026-01-31T08:00:00Z", date: "2026-01-31", time: "08:00:00", uuid: "00000000-0000-…" }[schema.format] ?? null;
}

function asNumber(text, schema) {
  const value = Number(text);
  if (!Number.isFinite(value)) throw new Error("It must be a number.");
  if (schema.type === "integer" && !Number.isSafeInteger(value)) throw new Error("It must be a whole number.");
  const bounds = [
    [schema.minimum, value < schema.minimum, "at least"],
    [schema.exclusiveMinimum, value <= schema.exclusiveMinimum, "more than"],
    [schema.maximum, value > schema.maximum, "at most"],
    [schema.exclusiveMaximum, value >= schema.exclusiveMaximum, "less than"],
  ];
  for (const [bound, broken, words] of bounds) {
    if (bound !== undefined && broken) throw new Error(`It must be ${words} ${bound}.`);
  }
  return value;
}

function asText(text, schema) {
  if (schema.minLength !== undefined && text.length < schema.minLength) {
    throw new Error(`It must have at least ${schema.minLength} characters.`);
  }
  if (schema.maxLength !== undefined && text.length > schema.maxLength) {
    throw new Error(`It may have at most ${schema.maxLength} characters.`);
  }
  if (schema.pattern !== undefined) {
    let pattern = null;
    try {
      pattern = new RegExp(schema.pattern, "u");
    } catch {
      // A pattern of Python that is none here is checked by the server.
    }
    if (pattern && !pattern.test(text)) throw new Error(`It must match ${schema.pattern}`);
  }
  return text;
}

export function asJson(text, schema = {}) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`This is no JSON: ${error.message}`);
  }
  if (value === null && schema.nullable) return value;
  if (schema.type === "array" && !Array.isArray(value)) throw new Error("It must be a list: [...]");
  if (schema.type === "object" && (typeof value !== "object" || value === null || Array.isArray(value))) {
    throw new Error("It must be an object: {...}");
  }
  return value;
}

export const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
