import { setImmediate as nextTurn } from 'node:timers/promises';
import { Injectable } from '@nestjs/common';
import { Counter, Gauge, Histogram, Registry } from 'prom-client';

/** What every series of this program begins with. */
const PREFIX = 'control_plane_';

/** How many sets of label values an instrument tells apart that does not say; what comes beyond them is counted as {@link OTHER}. */
const MAX_SERIES = 500;
/** The value of every label of what is not told apart. */
const OTHER = 'other';
/** How long the text of a scrape is used again, in milliseconds: many scrapers cost as much as one. */
const REUSED_MS = 1_000;
/** How long what a scrape reads may take in all, in milliseconds: Prometheus gives up after 10 s by default. */
const READING_MS = 5_000;
/** After so many milliseconds of reading, others have a turn: a scrape must not hold everybody up. */
const SLICE_MS = 5;

const NAME = /^[a-z][a-z0-9]*(?:_[a-z0-9]+)*$/;
/** Endings that the exposition gives a meaning of its own. */
const RESERVED_ENDING = /_(?:total|count|sum|bucket|created)$/;
/** Labels that grow with the fleet, its targets or its callers; and those that Prometheus gives a meaning of its own. */
const UNBOUNDED_LABELS = new Set([
  ...['agent', 'agent_id', 'hostname', 'host', 'address', 'ip', 'target', 'url', 'query', 'token'],
  ...['task', 'task_id', 'lease', 'lease_id', 'id', 'trace_id', 'user', 'operator', 'message', 'error'],
  ...['le', 'quantile', 'job', 'instance'],
]);

/** Values of an instrument's labels. */
export type LabelValues<Label extends string> = Readonly<Record<Label, string>>;

/** What an instrument is made from. */
export interface InstrumentOptions<Label extends string> {
  /** Without `control_plane_`: lower case, words joined by `_`, the unit last; `_total` at the end of counters and only there. */
  readonly name: string;
  /** One sentence: what is counted or measured. */
  readonly help: string;
  /** At most four; never one whose values grow with agents, targets, tasks or callers. */
  readonly labels?: readonly Label[];
  /** Labels that an operator has named, beside those. */
  readonly splitBy?: readonly string[];
  /** How many sets of label values it tells apart; what comes beyond them is counted as `other`. 500 if it is left out. */
  readonly maxSeries?: number;
}

/** Counts what happened since the process started. */
export interface CounterInstrument<Label extends string> {
  /** @param by a finite number, not below 0 */
  add(labels: LabelValues<Label>, by?: number): void;
}

/** Shows a value as it is now. */
export interface GaugeInstrument<Label extends string> {
  set(labels: LabelValues<Label>, value: number): void;
  /** Forgets all values: for those that a scrape is about to set. */
  reset(): void;
}

/** Shows how values are distributed. */
export interface HistogramInstrument<Label extends string> {
  observe(labels: LabelValues<Label>, value: number): void;
  /** Shows a set of label values before there is a value: the first one is an increase then. */
  begin(labels: LabelValues<Label>): void;
}

/** Shows how values are distributed that are there at the scrape. */
export interface SnapshotInstrument {
  /**
   * @param counts how many values are in each bucket and not in one before it, those beyond the last bound at the end
   * @param sum of all values
   */
  set(counts: readonly number[], sum: number): void;
}

/**
 * The process's own metrics, as `GET /metrics` shows them. An instrument is declared once, in the constructor of who counts; a name
 * that breaks the rules of Prometheus, that is taken, or whose labels have no bound stops the start. Rules:
 * https://prometheus.io/docs/practices/naming/
 */
@Injectable()
export class Meter {
  private readonly registry = new Registry();
  private readonly names = new Set<string>();
  private readonly snapshots: (() => string)[] = [];
  private readonly included: Registry[] = [];
  private readonly beforeScrape: (() => Promise<void> | void)[] = [];
  private exposition: { text: Promise<string>; madeAt: number } | undefined;
  private foldedSets = 0;
  private failedReads = 0;

  constructor(private readonly now: () => number = () => performance.now()) {
    this.readCounter(
      {
        name: 'metrics_series_folded_total',
        help: `Values that were counted as "${OTHER}", for their instrument has as many sets of labels as it may.`,
      },
      () => this.foldedSets,
    );
    this.readCounter(
      {
        name: 'metrics_read_failures_total',
        help: 'Times that something could not be read for a scrape, so that its values are those of before.',
      },
      () => this.failedReads,
    );
  }

  /** The type of the text that {@link expose} gives. */
  get contentType(): string {
    return this.registry.contentType;
  }

  /** Shows what another registry has, too: of the process as a whole, which may serve more than one application. */
  include(registry: Registry): void {
    this.included.push(registry);
  }

  /** @throws Error the name or a label breaks the rules, or the name is taken */
  counter<Label extends string = never>(options: InstrumentOptions<Label>): CounterInstrument<Label> {
    const counter = new Counter(this.checked(options, 'counter'));
    const fold = this.folder(options);
    return { add: (labels, by = 1) => counter.inc(fold(labels), by) };
  }

  /** @throws Error the name or a label breaks the rules, or the name is taken */
  gauge<Label extends string = never>(options: InstrumentOptions<Label>): GaugeInstrument<Label> {
    const gauge = new Gauge(this.checked(options, 'gauge'));
    const isSingle = [...(options.labels ?? []), ...(options.splitBy ?? [])].length === 0;
    let fold = this.folder(options);
    return {
      set: (labels, value) => gauge.set(fold(labels), value),
      reset: () => {
        gauge.reset();
        // One without labels would be 0.
        if (isSingle) gauge.remove();
        fold = this.folder(options);
      },
    };
  }

  /**
   * @param options.buckets upper bounds in the unit of the name, ascending
   * @throws Error the name or a label breaks the rules, or the name is taken
   */
  histogram<Label extends string = never>(
    options: InstrumentOptions<Label> & { readonly buckets: readonly number[] },
  ): HistogramInstrument<Label> {
    const histogram = new Histogram({
      ...this.checked(options, 'histogram'),
      buckets: [...options.buckets],
    });
    const fold = this.folder(options);
    return {
      observe: (labels, value) => histogram.observe(fold(labels), value),
      begin: (labels) => histogram.zero(fold(labels)),
    };
  }

  /**
   * A histogram of what is there at the scrape, not of what has happened: set it before each. Its numbers go down as well as up, so
   * that `histogram_quantile` takes them without `rate`.
   * @param options.buckets upper bounds in the unit of the name, ascending
   * @throws Error the name breaks the rules, or is taken
   */
  snapshot(options: InstrumentOptions<never> & { readonly buckets: readonly number[] }): SnapshotInstrument {
    const { name, help } = this.checked(options, 'histogram');
    let text = '';
    this.snapshots.push(() => text);
    return {
      set: (counts, sum) => {
        const bounds = [...options.buckets.map(String), '+Inf'];
        let total = 0;
        const lines = bounds.map((bound, i) => {
          total += counts[i] ?? 0;
          return `${name}_bucket{le="${bound}"} ${total}`;
        });
        text = [
          `# HELP ${name} ${help}`,
          `# TYPE ${name} histogram`,
          ...lines,
          `${name}_sum ${sum}`,
          `${name}_count ${total}`,
          '',
        ].join('\n');
      },
    };
  }

  /** A gauge without labels that is read at each scrape; undefined is no value. */
  readGauge(options: InstrumentOptions<never>, read: () => number | undefined): void {
    const gauge = this.gauge(options);
    this.onScrape(() => {
      const value = read();
      if (value === undefined) gauge.reset();
      else gauge.set({}, value);
    });
  }

  /** A counter that somebody else keeps, and that is read at each scrape. If what is read goes down, it stays. */
  readCounter(options: InstrumentOptions<never>, read: () => number): void {
    const counter = new Counter(this.checked(options, 'counter'));
    let most = 0;
    this.onScrape(() => {
      most = Math.max(most, read());
      counter.reset();
      counter.inc(most);
    });
  }

  /** The same for a counter with one label whose values are in the code: the counts by what it says. They must not go down. */
  tallies<Label extends string>(
    options: InstrumentOptions<Label> & { readonly labels: readonly [Label] },
    read: () => Readonly<Record<string, number>>,
  ): void {
    const counter = new Counter(this.checked(options, 'counter'));
    const [label] = options.labels;
    this.onScrape(() => {
      counter.reset();
      for (const [value, count] of Object.entries(read()))
        counter.inc({ [label]: value } as LabelValues<Label>, count);
    });
  }

  /**
   * Has this done before each scrape, to set what is only known then. If it fails, or is not done in time, its values are those of the
   * scrape before.
   */
  onScrape(work: () => Promise<void> | void): void {
    this.beforeScrape.push(work);
  }

  /**
   * The exposition in the text format of Prometheus. Scrapes within a second of one another share it.
   * @param onFailure is told why values are missing
   */
  expose(onFailure: (error: unknown) => void): Promise<string> {
    const now = this.now();
    if (this.exposition && now - this.exposition.madeAt < REUSED_MS) return this.exposition.text;
    const text = this.collect(onFailure);
    this.exposition = { text, madeAt: now };
    return text;
  }

  /** The exposition as it is at this instant; see {@link expose}. */
  async collect(onFailure: (error: unknown) => void): Promise<string> {
    let overdue: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      overdue = setTimeout(() => reject(new Error('it took too long')), READING_MS);
    });
    late.catch(() => undefined);
    // From the last to the first: the count of failures was declared first, and shows those of this scrape.
    let since = performance.now();
    for (const work of this.beforeScrape.toReversed()) {
      await Promise.race([attempt(work), late]).catch((error: unknown) => {
        this.failedReads++;
        onFailure(error);
      });
      if (performance.now() - since < SLICE_MS) continue;
      await nextTurn();
      since = performance.now();
    }
    clearTimeout(overdue);
    const texts = await Promise.all([this.registry, ...this.included].map((each) => each.metrics()));
    return texts.join('') + this.snapshots.map((text) => text()).join('');
  }

  private checked<Label extends string>(
    { name, help, labels = [], splitBy = [] }: InstrumentOptions<Label>,
    type: 'counter' | 'gauge' | 'histogram',
  ) {
    const bare = type === 'counter' ? name.replace(/_total$/, '') : name;
    const problem =
      (type === 'counter' && bare === name && 'must end in _total') ||
      (!NAME.test(bare) && 'must be lower case words joined by _') ||
      (this.names.has(name) && 'is there already') ||
      (name.startsWith(PREFIX) && `must not repeat ${PREFIX}`) ||
      (RESERVED_ENDING.test(bare) && 'ends in a word that Prometheus keeps for itself') ||
      ((help.trim() === '' || /[\n\\]/.test(help)) && 'needs a help text of one line, without \\') ||
      (labels.length > 4 && 'has more than four labels') ||
      (new Set(labels).size < labels.length && 'has a label twice') ||
      labelProblem(labels);
    if (problem) throw new Error(`The metric ${name} ${problem}.`);
    this.names.add(name);
    return { name: PREFIX + name, help, labelNames: [...labels, ...splitBy], registers: [this.registry] };
  }

  /** Folds sets of label values beyond the limit into one. */
  private folder<Label extends string>({
    labels: own = [],
    splitBy = [],
    maxSeries = MAX_SERIES,
  }: InstrumentOptions<Label>) {
    const labels = [...own, ...splitBy] as Label[];
    if (labels.length === 0) return (values: LabelValues<Label>) => values;
    const known = new Set<string>();
    const rest = Object.fromEntries(labels.map((label) => [label, OTHER])) as LabelValues<Label>;
    return (values: LabelValues<Label>): LabelValues<Label> => {
      let key = '';
      for (const label of labels) key += `${values[label]}\0`;
      if (known.has(key)) return values;
      if (known.size >= maxSeries) {
        this.foldedSets++;
        return rest;
      }
      known.add(key);
      return values;
    };
  }
}

const attempt = async (work: () => Promise<void> | void): Promise<void> => work();

function labelProblem(labels: readonly string[]): string | undefined {
  for (const label of labels) {
    if (!NAME.test(label)) return `has a label that is not lower case words joined by _: ${label}`;
    if (UNBOUNDED_LABELS.has(label)) return `has a label whose values have no bound: ${label}`;
  }
  return undefined;
}
