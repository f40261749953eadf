import { type FieldForm, valueCheck } from '../http/item-fields';
import { NAME, type TextRule } from '../http/text';

/** Labels of an agent: names to values. */
export type Labels = Record<string, string>;

/** The most labels in one request, and the most characters of a value. */
const MAX_LABELS = 32;
const MAX_VALUE = 255;

// No colon, so that `name:value` is unambiguous.
const PATTERN = /^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$/;
const LABEL_NAME: TextRule = {
  problem: (text) =>
    PATTERN.test(text) ? undefined : 'of 1 to 63 of A-Z a-z 0-9 . _ / -, with a letter or digit first',
};

const LABEL_VALUE = { type: 'string', maxLength: MAX_VALUE, rule: NAME } as const;
const problemOfValue = valueCheck(LABEL_VALUE);

/** A map of labels. */
export const LABELS = {
  type: 'map',
  values: LABEL_VALUE,
  noun: 'label',
  maxProperties: MAX_LABELS,
  names: LABEL_NAME,
  example: { region: 'fra' },
} as const satisfies FieldForm;

/** Filters `name:value`. */
export const LABEL_FILTERS = {
  type: 'list',
  items: {
    type: 'string',
    rule: { problem: (text) => (parseLabel(text) ? undefined : 'must be name:value') },
  },
  noun: 'label',
  maxItems: MAX_LABELS,
  inQuery: true,
} as const satisfies FieldForm;

/** Parses `name:value`; undefined if it has another form. */
export function parseLabel(text: string): [name: string, value: string] | undefined {
  const colon = text.indexOf(':');
  const [name, value] = [text.slice(0, colon), text.slice(colon + 1)];
  return colon > 0 && PATTERN.test(name) && !problemOfValue(value) ? [name, value] : undefined;
}
