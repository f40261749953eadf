import { setImmediate as nextTurn } from 'node:timers/promises';
import { Injectable } from '@nestjs/common';
import { Counter, Gauge, Histogram, Registry } from 'prom-client';

/** The prefix of every metric of this program. */
const PREFIX = 'control_plane_';

/** The default limit on an instrument's sets of label values; further ones are counted as {@link OTHER}. */
const MAX_SERIES = 500;
/** The value of every label beyond the limit. */
const OTHER = 'other';
/** How long the text of a scrape is reused, in ms: many scrapers cost as much as one. */
const REUSED_MS = 1_000;
/** How long all reads of a scrape may take together, in ms: Prometheus gives up after 10 s by default. */
const READING_MS = 5_000;
/** After this time, in ms, a scrape yields to the event loop, so that it does not delay requests. */
const SLICE_MS = 5;

const NAME = /^[a-z][a-z0-9]*(?:_[a-z0-9]+)*$/;
/** Suffixes with a meaning in the exposition format. */
const RESERVED_ENDING = /_(?:total|count|sum|bucket|created)$/;
/** Labels whose values grow with the fleet, its targets or its callers; and labels with a meaning in Prometheus. */
const UNBOUNDED_LABELS = new Set([
  ...['agent', 'agent_id', 'hostname', 'host', 'address', 'ip', 'target', 'url', 'query', 'token'],
  ...['task', 'task_id', 'lease', 'lease_id', 'id', 'trace_id', 'user', 'operator', 'message', 'error'],
  ...['le', 'quantile', 'job', 'instance'],
]);

/** The values of an instrument's labels. */
export type LabelValues<Label extends string> = Readonly<Record<Label, string>>;

/** The options of an instrument. */
export interface InstrumentOptions<Label extends string> {
  /** Without `control_plane_`: lower case, words joined by `_`, the unit last; `_total` at the end of counters and only there. */
  readonly name: string;
  /** One sentence: what is counted or measured. */
  readonly help: string;
  /** At most four; never one whose values grow with agents, targets, tasks or callers. */
  readonly labels?: readonly Label[];
  /** Further labels, which an operator has configured. */
  readonly splitBy?: readonly string[];
  /** How many sets of label values it may have; further ones are counted as `other`. Default: 500. */
  readonly maxSeries?: number;
}

/** Counts events since the process started. */
export interface CounterInstrument<Label extends string> {
  /** @param by a finite number, not below 0 */
  add(labels: LabelValues<Label>, by?: number): void;
}

/** Shows a current value. */
export interface GaugeInstrument<Label extends string> {
  set(labels: LabelValues<Label>, value: number): void;
  /** Removes all values, before a scrape sets them again. */
  reset(): void;
}

/** Shows the distribution of values. */
export interface HistogramInstrument<Label extends string> {
  observe(labels: LabelValues<Label>, value: number): void;
  /** Shows a set of label values before its first value, so that the first value is an increase. */
  begin(labels: LabelValues<Label>): void;
}

/** Shows the distribution of values at the time of the scrape. */
export interface SnapshotInstrument {
  /**
   * @param counts how many values are in each bucket alone, those beyond the last bound at the end
   * @param sum of all values
   */
  set(counts: readonly number[], sum: number): void;
}

/**
 * The process's own metrics, as `GET /metrics` shows them. Each class that counts declares its instruments in its constructor.
 * A name that breaks the rules of Prometheus or is taken, or a label without bounded values, stops the start. Rules:
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
        help: `Values that were counted as "${OTHER}" because their instrument has its maximum of label sets.`,
      },
      () => this.foldedSets,
    );
    this.readCounter(
      {
        name: 'metrics_read_failures_total',
        help: 'Reads that failed during a scrape, so that their last values are shown.',
      },
      () => this.failedReads,
    );
  }

  /** The content type of the text of {@link expose}. */
  get contentType(): string {
    return this.registry.contentType;
  }

  /** Adds the metrics of another registry, such as those of the process, which may run several applications. */
  include(registry: Registry): void {
    this.included.push(registry);
  }

  /** Declares a counter. @throws Error the name or a label breaks the rules, or the name is taken */
  counter<Label extends string = never>(options: InstrumentOptions<Label>): CounterInstrument<Label> {
    const counter = new Counter(this.checked(options, 'counter'));
    const fold = this.folder(options);
    return { add: (labels, by = 1) => counter.inc(fold(labels), by) };
  }

  /** Declares a gauge. @throws Error the name or a label breaks the rules, or the name is taken */
  gauge<Label extends string = never>(options: InstrumentOptions<Label>): GaugeInstrument<Label> {
    const gauge = new Gauge(this.checked(options, 'gauge'));
    const isSingle = [...(options.labels ?? []), ...(options.splitBy ?? [])].length === 0;
    let fold = this.folder(options);
    return {
      set: (labels, value) => gauge.set(fold(labels), value),
      reset: () => {
        gauge.reset();
        // A gauge without labels would show 0.
        if (isSingle) gauge.remove();
        fold = this.folder(options);
      },
    };
  }

  /**
   * Declares a histogram.
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
   * Declares a histogram of the values that exist at a scrape, instead of past events; set it before each scrape. Its numbers
   * go up and down, so use `histogram_quantile` without `rate`.
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

  /** Declares a gauge without labels that is read at each scrape; undefined is no value. */
  readGauge(options: InstrumentOptions<never>, read: () => number | undefined): void {
    const gauge = this.gauge(options);
    this.onScrape(() => {
      const value = read();
      if (value === undefined) gauge.reset();
      else gauge.set({}, value);
    });
  }

  /** Declares a counter that is read from elsewhere at each scrape. It never goes down, even if what is read does. */
  readCounter(options: InstrumentOptions<never>, read: () => number): void {
    const counter = new Counter(this.checked(options, 'counter'));
    let highest = 0;
    this.onScrape(() => {
      highest = Math.max(highest, read());
      counter.reset();
      counter.inc(highest);
    });
  }

  /** Declares a counter with one label that is read at each scrape. @param read returns a count for each label value; never a lower one */
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
   * Runs `work` before each scrape, to set values that are only known then. If it fails or takes too long, its values stay those
   * of the last scrape.
   */
  onScrape(work: () => Promise<void> | void): void {
    this.beforeScrape.push(work);
  }

  /**
   * Renders the metrics in the text format of Prometheus. Scrapes within a second share one rendering.
   * @param onFailure receives the errors of reads that failed
   */
  expose(onFailure: (error: unknown) => void): Promise<string> {
    const now = this.now();
    if (this.exposition && now - this.exposition.madeAt < REUSED_MS) return this.exposition.text;
    const text = this.collect(onFailure);
    this.exposition = { text, madeAt: now };
    return text;
  }

  /** Renders the metrics as they are now; see {@link expose}. */
  async collect(onFailure: (error: unknown) => void): Promise<string> {
    let overdue: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      overdue = setTimeout(() => reject(new Error('it took too long')), READING_MS);
    });
    late.catch(() => undefined);
    // In reverse order: the count of failures was declared first, and must include those of this scrape.
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
      (this.names.has(name) && 'exists already') ||
      (name.startsWith(PREFIX) && `must not repeat ${PREFIX}`) ||
      (RESERVED_ENDING.test(bare) && 'ends in a word that Prometheus reserves') ||
      ((help.trim() === '' || /[\n\\]/.test(help)) && 'needs a help text of one line, without \\') ||
      (labels.length > 4 && 'has more than four labels') ||
      (new Set(labels).size < labels.length && 'has a label twice') ||
      labelProblem(labels);
    if (problem) throw new Error(`The metric ${name} ${problem}.`);
    this.names.add(name);
    return { name: PREFIX + name, help, labelNames: [...labels, ...splitBy], registers: [this.registry] };
  }

  /** Returns a function that replaces sets of label values beyond the limit by one common set. */
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
