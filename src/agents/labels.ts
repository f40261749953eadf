import { NAME_PATTERN, nameProblem } from '../http/text';
import { type ItemProblem, Items } from '../http/validation';

/** What agents are told apart by: names to values. */
export type Labels = Record<string, string>;

/** How many labels one request may give, and how long a value may be. */
const MAX_LABELS = 32;
const MAX_VALUE = 255;

// No colon, so that `name:value` is read in one way only.
const NAME = /^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$/;

/** How the OpenAPI document describes a map of labels. */
export const LABELS_SCHEMA = {
  type: 'object',
  additionalProperties: { type: 'string', maxLength: MAX_VALUE, pattern: NAME_PATTERN },
  maxProperties: MAX_LABELS,
  example: { region: 'fra' },
} as const;

/** The value is a map of labels. */
export const IsLabels = (): PropertyDecorator => Items(problemOf);

function problemOf(labels: unknown): ItemProblem | undefined {
  if (typeof labels !== 'object' || labels === null || Array.isArray(labels))
    return ['', 'must be an object'];
  const entries = Object.entries(labels);
  if (entries.length > MAX_LABELS) return ['', `must hold at most ${MAX_LABELS} labels`];
  for (const [name, value] of entries) {
    // Not by its name, which may be anything.
    if (!NAME.test(name))
      return ['', 'must have names of 1 to 63 of A-Z a-z 0-9 . _ / -, with a letter or digit first'];
    if (typeof value !== 'string' || value.length > MAX_VALUE)
      return [name, `must be text of at most ${MAX_VALUE} characters`];
    const problem = nameProblem(value);
    if (problem) return [name, problem];
  }
  return undefined;
}

/** The values are filters `name:value`, as many as there may be labels. */
export const AreLabelFilters = (): PropertyDecorator =>
  Items((filters) =>
    Array.isArray(filters) && filters.length <= MAX_LABELS && filters.every((one) => parseLabel(one))
      ? undefined
      : ['', `must be name:value, at most ${MAX_LABELS} of them`],
  );

/** Reads `name:value`; undefined if it is not of that form. */
export function parseLabel(text: unknown): [name: string, value: string] | undefined {
  if (typeof text !== 'string') return undefined;
  const colon = text.indexOf(':');
  const [name, value] = [text.slice(0, colon), text.slice(colon + 1)];
  return colon > 0 && !problemOf({ [name]: value }) ? [name, value] : undefined;
}
