/** Makes what others wrote harmless for a terminal: control characters show as what they are. */
function harmless(text: string): string {
  return text.replace(
    /[\p{Cc}\u2028\u2029\u202a-\u202e\u2066-\u2069]/gu,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

function cell(value: unknown): string {
  if (value === null || value === undefined) return '-';
  return harmless(typeof value === 'string' ? value : JSON.stringify(value));
}

/** Writes to standard output, where the answer goes and nothing else. */
export function print(text: string): void {
  process.stdout.write(text.endsWith('\n') ? text : `${text}\n`);
}

/** Writes to standard error what the person should know besides. */
export function note(text: string): void {
  process.stderr.write(`${text.split('\n').map(harmless).join('\n')}\n`);
}

/** A table of some fields of items, named by their columns. */
export function table(items: readonly object[], columns: readonly string[]): string {
  const rows = [
    columns.map((column) => column.toUpperCase()),
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
