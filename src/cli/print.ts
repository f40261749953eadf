/**
 * What a terminal acts on or does not show: DEL and C1 controls, what sets the direction of text, what has no width, and
 * line separators. JSON escapes only the C0 controls by itself.
 */
const INVISIBLE = /[\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
const UNSAFE = new RegExp(`[\\u0000-\\u001f]|${INVISIBLE.source}`, 'g');

const escaped = (character: string): string => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`;

/** Makes a line that others wrote harmless for a terminal: such characters show as `\\u001b`. */
export const harmless = (line: string): string => line.replace(UNSAFE, escaped);

/** The same for JSON, whose value stays what it is: these characters stand in strings only. */
export const harmlessJson = (text: string): string => text.replace(INVISIBLE, escaped);

function cell(value: unknown): string {
  if (value === null || value === undefined) return '-';
  return harmless(typeof value === 'string' ? value : JSON.stringify(value));
}

/** A table of some fields of items, named by their columns. */
export function table(items: readonly object[], columns: readonly string[]): string {
  const rows = [
    columns.map((column) => harmless(column.toUpperCase())),
    ...items.map((item) => columns.map((column) => cell((item as Record<string, unknown>)[column]))),
  ];
  const widths = columns.map((_, i) => Math.max(...rows.map((row) => [...(row[i] as string)].length)));
  return rows
    .map((row) =>
      row
        .map((text, i) => text + ' '.repeat((widths[i] as number) - [...text].length))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

/** One thing: a line for each field; lists of things as tables below. */
export function fields(thing: object): string {
  const entries = Object.entries(thing);
  const isList = (value: unknown): value is object[] =>
    Array.isArray(value) &&
    value.length > 0 &&
    value.every((item) => typeof item === 'object' && item !== null);
  const lines = entries
    .filter(([, value]) => !isList(value))
    .map(([name, value]) => [name, cell(value)] as const);
  const width = Math.max(0, ...lines.map(([name]) => name.length));
  const lists = entries.flatMap(([name, value]) =>
    isList(value)
      ? [`\n${name}\n${table(value, [...new Set(value.flatMap((item) => Object.keys(item)))])}`]
      : [],
  );
  return [...lines.map(([name, text]) => `${name.padEnd(width)}  ${text}`), ...lists].join('\n');
}
