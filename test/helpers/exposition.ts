/** One line of an exposition. */
export interface Line {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

/** The text format of Prometheus, version 0.0.4, read. */
export class Exposition {
  readonly lines: readonly Line[];
  /** The type of each series that was declared. */
  readonly types: ReadonlyMap<string, string>;

  constructor(text: string) {
    const types = new Map<string, string>();
    const lines: Line[] = [];
    for (const line of text.split('\n')) {
      const type = /^# TYPE (\S+) (\w+)$/.exec(line);
      if (type) types.set(type[1] as string, type[2] as string);
      if (line === '' || line.startsWith('#')) continue;
      const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
      if (!match) throw new Error(`not a line of an exposition: ${line}`);
      const labels: Record<string, string> = {};
      for (const [, name, value] of (match[2] ?? '').matchAll(/(\w+)="((?:[^"\\]|\\.)*)"(?:,|$)/g))
        labels[name as string] = (value as string).replace(/\\(.)/g, (_, c) => (c === 'n' ? '\n' : c));
      lines.push({ name: match[1] as string, labels, value: Number(match[3]) });
    }
    this.types = types;
    this.lines = lines;
  }

  /** The lines of a series of this program whose labels are at least these. */
  find(name: string, labels: Readonly<Record<string, string>> = {}): Line[] {
    return this.lines.filter(
      (line) =>
        line.name === `control_plane_${name}` &&
        Object.entries(labels).every(([label, value]) => line.labels[label] === value),
    );
  }

  /** The sum of the values of {@link find}; undefined if there are none. */
  value(name: string, labels: Readonly<Record<string, string>> = {}): number | undefined {
    const found = this.find(name, labels);
    return found.length === 0 ? undefined : found.reduce((sum, { value }) => sum + value, 0);
  }
}
