/**
 * What a terminal acts on or does not show, by Unicode's properties: DEL and C1 controls, format characters (what sets the
 * direction of text, tags, soft hyphens), what is ignored where it can't be shown, and line separators. JSON escapes only
 * the C0 controls by itself.
 */
const INVISIBLE = /[\u007f-\u009f\p{Cf}\p{Default_Ignorable_Code_Point}\p{Zl}\p{Zp}]/gu;
const UNSAFE = new RegExp(`[\\u0000-\\u001f]|${INVISIBLE.source}`, 'gu');

/** As JSON writes it: two escapes if the character has two units. */
const escaped = (character: string): string =>
  character
    .split('')
    .map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
    .join('');

/** Makes a line that others wrote harmless for a terminal: such characters show as `\\u001b`. */
export const harmless = (line: string): string => line.replace(UNSAFE, escaped);

/** The same for JSON, whose value stays what it is: these characters stand in strings only. */
export const harmlessJson = (text: string): string => text.replace(INVISIBLE, escaped);

/** How much of a nested value a table shows, in characters. */
const MAX_NESTED = 60;

/** Agents choose what they observe: with more columns, or padded to more characters, few rows could fill the memory. */
const MAX_COLUMNS = 16;
const MAX_PADDED = 100;

type Row = Readonly<Record<string, unknown>>;

const isThing = (value: unknown): value is object => typeof value === 'object' && value !== null;

const scalar = (value: unknown): string => (typeof value === 'string' ? value : JSON.stringify(value));

/** A text within a line of others: quoted if it could be read as more than one of them. */
const quoted = (value: unknown): string => {
  const text = scalar(value);
  return typeof value === 'string' && (text === '' || /[\s,="]/.test(text)) ? JSON.stringify(text) : text;
};

/** The parts of a value as `name=value`, nested names with dots between them. */
function* pairsOf(value: unknown, name: string): Generator<string> {
  if (!isThing(value)) yield `${name}=${quoted(value)}`;
  else if (Array.isArray(value) && !value.some(isThing))
    yield `${name}=${value.map(quoted).join(',') || '[]'}`;
  else if (Object.keys(value).length === 0) yield `${name}={}`;
  else
    for (const [member, part] of Object.entries(value))
      yield* pairsOf(part, name === '' ? quoted(member) : `${name}.${quoted(member)}`);
}

/** A value in one line: a text as it is, a list with commas, an object as `name=value name=value`; nothing as `-`. */
function inOneLine(value: unknown, maxNested: number): string {
  if (value === null || value === undefined) return '-';
  if (!isThing(value)) return harmless(scalar(value));
  if (Object.keys(value).length === 0) return maxNested === Infinity ? JSON.stringify(value) : '-';
  if (Array.isArray(value) && !value.some(isThing)) return shortened(value.map(quoted).join(', '), maxNested);
  let line = '';
  for (const pair of pairsOf(value, '')) {
    line += line === '' ? pair : ` ${pair}`;
    if (line.length > 2 * maxNested) break;
  }
  return shortened(line, maxNested);
}

/** A line that others wrote, harmless for a terminal, of at most so many characters of theirs. */
export function shortened(line: string, max: number): string {
  if (line.length <= max) return harmless(line);
  // A character has at most two units: this has more than `max` characters if the line has.
  const characters = [...line.slice(0, 2 * max + 2)];
  return harmless(characters.length <= max ? line : `${characters.slice(0, max - 3).join('')}...`);
}

/**
 * A table of some fields of items, named by their columns.
 * @param maxNested how many characters of an object or a list to show
 */
export function table(
  items: readonly object[],
  columns: readonly string[],
  maxNested: number = MAX_NESTED,
): string {
  const rows = [
    columns.map((column) => harmless(column.toUpperCase())),
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

const isListOfThings = (value: unknown): value is object[] => Array.isArray(value) && value.some(isThing);

/** One thing: a line for each field, what is in a field indented under its name; lists of things below. */
export function fields(thing: object): string {
  const entries = Object.entries(thing);
  return [
    ...fieldLines(entries.filter(([, value]) => !isListOfThings(value))),
    ...entries.flatMap(([name, value]) =>
      isListOfThings(value) ? ['', harmless(name), ...listLines(value)] : [],
    ),
  ].join('\n');
}

function fieldLines(entries: readonly [name: string, value: unknown][]): string[] {
  const isBlock = (value: unknown) =>
    isThing(value) && Object.keys(value).length > 0 && (!Array.isArray(value) || isListOfThings(value));
  const named = entries.map(([name, value]) => [harmless(name), value] as const);
  const width = widest(named.flatMap(([name, value]) => (isBlock(value) ? [] : [name])));
  return named.flatMap(([name, value]) => {
    if (!isBlock(value)) return [`${padded(name, width)}  ${inOneLine(value, Infinity)}`];
    const below = isListOfThings(value) ? listLines(value) : fieldLines(Object.entries(value as object));
    return [name, ...below.map((line) => `  ${line}`)];
  });
}

/** A table if each item fits a row, else the items one below the other. */
function listLines(items: readonly unknown[]): string[] {
  const fits = (item: unknown) =>
    isThing(item) &&
    !Array.isArray(item) &&
    Object.values(item).every((value) => !isThing(value) || isList(value));
  if (items.every(fits)) {
    const columns = [...new Set(items.flatMap((item) => Object.keys(item as object)))];
    if (columns.length <= MAX_COLUMNS) return table(items as object[], columns, Infinity).split('\n');
  }
  return items.flatMap((item, i) => {
    const lines = isThing(item) ? fieldLines(Object.entries(item)) : [inOneLine(item, Infinity)];
    return [...(i > 0 ? [''] : []), ...lines.map((line) => `  ${line}`)];
  });
}

const isList = (value: unknown): boolean => Array.isArray(value) && !isListOfThings(value);
