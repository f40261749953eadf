/**
 * Characters that a terminal acts on or does not show, by Unicode's properties: DEL and C1 controls, format characters
 * (text direction, tags, soft hyphens), default-ignorable characters, and line separators. JSON itself escapes only the C0
 * controls.
 */
const INVISIBLE = /[\u007f-\u009f\p{Cf}\p{Default_Ignorable_Code_Point}\p{Zl}\p{Zp}]/gu;
const UNSAFE = new RegExp(`[\\u0000-\\u001f]|${INVISIBLE.source}`, 'gu');

/** Escapes a character as JSON does: two escapes if it has two UTF-16 units. */
const escaped = (character: string): string =>
  character
    .split('')
    .map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
    .join('');

/** Escapes these characters in untrusted text, so that it is safe for a terminal: `\\u001b`. */
export const escapeControls = (line: string): string => line.replace(UNSAFE, escaped);

/** Does the same in a JSON text; its value stays the same, since these characters occur in strings only. */
export const escapeJson = (text: string): string => text.replace(INVISIBLE, escaped);

/** How many characters of a nested value a table shows. */
const MAX_NESTED = 60;

/** Agents choose the names and values of observations: without limits, a few rows could fill the memory. */
const MAX_COLUMNS = 16;
const MAX_PADDED = 100;

type Row = Readonly<Record<string, unknown>>;

const isObject = (value: unknown): value is object => typeof value === 'object' && value !== null;

const scalar = (value: unknown): string => (typeof value === 'string' ? value : JSON.stringify(value));

/** Formats a value within a line of others, quoted if it could be read as several values. */
const quoted = (value: unknown): string => {
  const text = scalar(value);
  return typeof value === 'string' && (text === '' || /[\s,="]/.test(text)) ? JSON.stringify(text) : text;
};

/** Yields the parts of a value as `name=value`, nested names joined by dots. */
function* pairsOf(value: unknown, name: string): Generator<string> {
  if (!isObject(value)) yield `${name}=${quoted(value)}`;
  else if (Array.isArray(value) && !value.some(isObject))
    yield `${name}=${value.map(quoted).join(',') || '[]'}`;
  else if (Object.keys(value).length === 0) yield `${name}={}`;
  else
    for (const [member, part] of Object.entries(value))
      yield* pairsOf(part, name === '' ? quoted(member) : `${name}.${quoted(member)}`);
}

/** Renders a value in one line: text as it is, a list with commas, an object as `name=value name=value`, nothing as `-`. */
function inOneLine(value: unknown, maxNested: number): string {
  if (value === null || value === undefined) return '-';
  if (!isObject(value)) return escapeControls(scalar(value));
  if (Object.keys(value).length === 0) return maxNested === Infinity ? JSON.stringify(value) : '-';
  if (Array.isArray(value) && !value.some(isObject))
    return truncated(value.map(quoted).join(', '), maxNested);
  let line = '';
  for (const pair of pairsOf(value, '')) {
    line += line === '' ? pair : ` ${pair}`;
    if (line.length > 2 * maxNested) break;
  }
  return truncated(line, maxNested);
}

/** Cuts untrusted text to at most `max` characters, and escapes it for a terminal. */
export function truncated(line: string, max: number): string {
  if (line.length <= max) return escapeControls(line);
  // A character has at most two UTF-16 units: this slice has more than `max` characters if the line has.
  const characters = [...line.slice(0, 2 * max + 2)];
  return escapeControls(characters.length <= max ? line : `${characters.slice(0, max - 3).join('')}...`);
}

/**
 * Renders a table, one row for each item.
 * @param columns the fields to show
 * @param maxNested how many characters of an object or a list to show
 */
export function table(
  items: readonly object[],
  columns: readonly string[],
  maxNested: number = MAX_NESTED,
): string {
  const rows = [
    columns.map((column) => escapeControls(column.toUpperCase())),
    ...items.map((item) => columns.map((column) => inOneLine((item as Row)[column], maxNested))),
  ];
  const widths = columns.map((_, i) => widest(rows.map((row) => row[i] as string)));
  return rows
    .map((row) =>
      row
        .map((text, i) => padded(text, widths[i] as number))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

const widest = (texts: readonly string[]): number =>
  Math.min(
    MAX_PADDED,
    texts.reduce((width, text) => Math.max(width, [...text].length), 0),
  );

const padded = (text: string, width: number): string =>
  text + ' '.repeat(Math.max(0, width - [...text].length));

const isListOfObjects = (value: unknown): value is object[] => Array.isArray(value) && value.some(isObject);

/** Renders an object: a line for each field, nested fields indented under its name, lists of objects below. */
export function fields(object: object): string {
  const entries = Object.entries(object);
  return [
    ...fieldLines(entries.filter(([, value]) => !isListOfObjects(value))),
    ...entries.flatMap(([name, value]) =>
      isListOfObjects(value) ? ['', escapeControls(name), ...listLines(value)] : [],
    ),
  ].join('\n');
}

function fieldLines(entries: readonly [name: string, value: unknown][]): string[] {
  const isBlock = (value: unknown) =>
    isObject(value) && Object.keys(value).length > 0 && (!Array.isArray(value) || isListOfObjects(value));
  const named = entries.map(([name, value]) => [escapeControls(name), value] as const);
  const width = widest(named.flatMap(([name, value]) => (isBlock(value) ? [] : [name])));
  return named.flatMap(([name, value]) => {
    if (!isBlock(value)) return [`${padded(name, width)}  ${inOneLine(value, Infinity)}`];
    const below = isListOfObjects(value) ? listLines(value) : fieldLines(Object.entries(value as object));
    return [name, ...below.map((line) => `  ${line}`)];
  });
}

/** Renders a table if every item fits a row, otherwise the items one below the other. */
function listLines(items: readonly unknown[]): string[] {
  const fits = (item: unknown) =>
    isObject(item) &&
    !Array.isArray(item) &&
    Object.values(item).every((value) => !isObject(value) || isList(value));
  if (items.every(fits)) {
    const columns = [...new Set(items.flatMap((item) => Object.keys(item as object)))];
    if (columns.length <= MAX_COLUMNS) return table(items as object[], columns, Infinity).split('\n');
  }
  return items.flatMap((item, i) => {
    const lines = isObject(item) ? fieldLines(Object.entries(item)) : [inOneLine(item, Infinity)];
    return [...(i > 0 ? [''] : []), ...lines.map((line) => `  ${line}`)];
  });
}

const isList = (value: unknown): boolean => Array.isArray(value) && !isListOfObjects(value);
