import type { Sample } from './metrics.dto';

/** The most names, counters and gauges together. */
export const MAX_NAMES = 500;
/** The most names that one agent may introduce: names are free text, and one agent must not use up all of them. */
export const MAX_NAMES_OF_AGENT = 100;

const FIRST_SLOTS = 64;

/** The most aggregates of a scrape, because it must not delay requests. */
export const MAX_AGGREGATES = 2_000;

/** The samples of one envelope. */
export interface AgentEnvelope {
  readonly agentId: number;
  /** In ms since the epoch, by the agent's clock. */
  readonly measuredAt: number;
  readonly counters: readonly Pick<Sample, 'name' | 'value'>[];
  readonly gauges: readonly Pick<Sample, 'name' | 'value'>[];
}

/** The aggregated values of a group of agents under one name. */
export type Aggregate =
  | { readonly type: 'counter'; readonly name: string; readonly group: number; readonly sum: number }
  | {
      readonly type: 'gauge';
      readonly name: string;
      readonly group: number;
      readonly min: number;
      readonly mean: number;
      readonly max: number;
    };

/** The last value of each agent under one name, by the agent's slot; NaN if it sent none. */
interface Column {
  readonly type: Aggregate['type'];
  readonly name: string;
  /** The agent that sent the name first. */
  readonly introducedBy: number;
  values: Float64Array;
  /** When each value was stored, in seconds by the caller's clock. */
  takenAt: Uint32Array;
  /** The number of agents that have a value. */
  holders: number;
}

/**
 * Holds the last values of the agents' own metrics: one array for each name, with one number for each agent. So an
 * aggregate is one pass over an array, and the memory is limited to {@link MAX_NAMES} numbers for each agent.
 */
export class AgentSamples {
  private readonly slots = new Map<number, number>();
  private readonly free: number[] = [];
  private readonly columns = new Map<string, Column>();
  /** The number of names that each agent has introduced. */
  private readonly introduced = new Map<number, number>();
  /** When the last values of each slot were measured. */
  private measuredAt = new Float64Array(FIRST_SLOTS);
  /** When the last envelope of each slot was stored, in seconds. */
  private storedAt = new Uint32Array(FIRST_SLOTS);
  private droppedValues = 0;
  private hiddenAggregates = 0;

  /** The number of values that were dropped because there are too many names. */
  get dropped(): number {
    return this.droppedValues;
  }

  /** The number of aggregates that {@link aggregates} last left out because there are too many. */
  get hidden(): number {
    return this.hiddenAggregates;
  }

  /** The number of agents that have values. */
  get agents(): number {
    return this.slots.size;
  }

  /**
   * Stores the values of an envelope, unless a later one of the agent is stored already.
   * @param now in ms since the epoch; an envelope that is ahead of it counts as measured now
   */
  take({ agentId, measuredAt, counters, gauges }: AgentEnvelope, now: number): void {
    const slot = this.slotOf(agentId);
    const at = Math.min(measuredAt, now);
    const before = this.measuredAt[slot] as number;
    if (at < before) return;
    this.measuredAt[slot] = at;
    const seconds = Math.floor(now / 1_000);
    this.storedAt[slot] = seconds;
    let dropped = 0;
    const store = (type: Column['type'], name: string, value: number) => {
      if (!this.store(type, name, agentId, slot, value, seconds)) dropped++;
    };
    for (const { name, value } of counters) store('counter', name, value);
    for (const { name, value } of gauges) store('gauge', name, value);
    // An envelope that arrives twice, or is read from the database too, is counted once.
    if (at !== before) this.droppedValues += dropped;
  }

  /**
   * Removes all agents but these, the values that an agent no longer sends, and the names without values.
   * @param since in ms since the epoch: an older value is removed if its agent has sent an envelope without it since
   */
  retain(agentIds: ReadonlySet<number>, since = 0): void {
    const before = Math.floor(since / 1_000);
    // An agent whose clock was set back sends only earlier timestamps: if nothing was stored for long enough, accept them.
    for (const slot of this.slots.values())
      if ((this.storedAt[slot] as number) < before) this.measuredAt[slot] = 0;
    for (const [key, column] of this.columns) {
      for (let slot = 0; slot < column.values.length; slot++) {
        const takenAt = column.takenAt[slot] as number;
        if (takenAt >= before || takenAt >= (this.storedAt[slot] as number)) continue;
        if (Number.isNaN(column.values[slot])) continue;
        column.values[slot] = Number.NaN;
        if (--column.holders === 0) this.removeColumn(key, column);
      }
    }
    for (const [agentId, slot] of this.slots) {
      if (agentIds.has(agentId)) continue;
      for (const [key, column] of this.columns) {
        if (Number.isNaN(column.values[slot])) continue;
        column.values[slot] = Number.NaN;
        if (--column.holders === 0) this.removeColumn(key, column);
      }
      this.measuredAt[slot] = 0;
      this.storedAt[slot] = 0;
      this.slots.delete(agentId);
      this.free.push(slot);
    }
  }

  /**
   * Computes the aggregates by name and group.
   * @param groupOf returns the group of an agent, a small integer
   */
  *aggregates(groupOf: (agentId: number) => number): Generator<Aggregate> {
    const groups = new Int32Array(this.measuredAt.length).fill(-1);
    let last = -1;
    for (const [agentId, slot] of this.slots) {
      const group = groupOf(agentId);
      groups[slot] = group;
      if (group > last) last = group;
    }
    let shown = 0;
    const counts = new Float64Array(last + 1);
    const sums = new Float64Array(last + 1);
    const mins = new Float64Array(last + 1);
    const maxs = new Float64Array(last + 1);
    for (const { type, name, values } of this.columns.values()) {
      counts.fill(0);
      sums.fill(0);
      mins.fill(Number.POSITIVE_INFINITY);
      maxs.fill(Number.NEGATIVE_INFINITY);
      // Agents may have been added since the groups were built, because the caller can pause between two names.
      const length = Math.min(values.length, groups.length);
      for (let slot = 0; slot < length; slot++) {
        const value = values[slot] as number;
        const group = groups[slot] as number;
        if (Number.isNaN(value) || group < 0) continue;
        (counts[group] as number)++;
        (sums[group] as number) += value;
        if (type === 'counter') continue;
        if (value < (mins[group] as number)) mins[group] = value;
        if (value > (maxs[group] as number)) maxs[group] = value;
      }
      for (let group = 0; group <= last; group++) {
        const count = counts[group] as number;
        if (count === 0) continue;
        if (++shown > MAX_AGGREGATES) continue;
        const sum = sums[group] as number;
        if (type === 'counter')
          yield { type, name, group, sum: Math.max(-Number.MAX_VALUE, Math.min(Number.MAX_VALUE, sum)) };
        else
          yield {
            ...{ type, name, group, min: mins[group] as number, max: maxs[group] as number },
            mean: Number.isFinite(sum) ? sum / count : meanOf(values, groups, group),
          };
      }
    }
    this.hiddenAggregates = Math.max(0, shown - MAX_AGGREGATES);
  }

  private slotOf(agentId: number): number {
    const known = this.slots.get(agentId);
    if (known !== undefined) return known;
    const slot = this.free.pop() ?? this.slots.size;
    if (slot >= this.measuredAt.length) this.grow();
    this.slots.set(agentId, slot);
    return slot;
  }

  private grow(): void {
    const size = 2 * this.measuredAt.length;
    const doubles = (values: Float64Array, fill: number): Float64Array<ArrayBuffer> => {
      const larger = new Float64Array(size).fill(fill, values.length);
      larger.set(values);
      return larger;
    };
    const seconds = (values: Uint32Array): Uint32Array<ArrayBuffer> => {
      const larger = new Uint32Array(size);
      larger.set(values);
      return larger;
    };
    this.measuredAt = doubles(this.measuredAt, 0);
    this.storedAt = seconds(this.storedAt);
    for (const column of this.columns.values()) {
      column.values = doubles(column.values, Number.NaN);
      column.takenAt = seconds(column.takenAt);
    }
  }

  private store(
    type: Column['type'],
    sent: string,
    agentId: number,
    slot: number,
    value: number,
    seconds: number,
  ): boolean {
    const name = labelOf(sent);
    const key = `${type} ${name}`;
    const column = this.columns.get(key) ?? this.addColumn(type, name, key, agentId);
    if (!column) return false;
    if (Number.isNaN(column.values[slot])) column.holders++;
    column.values[slot] = value;
    column.takenAt[slot] = seconds;
    return true;
  }

  private addColumn(type: Column['type'], name: string, key: string, agentId: number): Column | undefined {
    const count = this.introduced.get(agentId) ?? 0;
    if (this.columns.size >= MAX_NAMES || count >= MAX_NAMES_OF_AGENT) return undefined;
    const values = new Float64Array(this.measuredAt.length).fill(Number.NaN);
    const takenAt = new Uint32Array(values.length);
    const column = { type, name, introducedBy: agentId, values, takenAt, holders: 0 };
    this.columns.set(key, column);
    this.introduced.set(agentId, count + 1);
    return column;
  }

  private removeColumn(key: string, { introducedBy }: Column): void {
    this.columns.delete(key);
    const left = (this.introduced.get(introducedBy) ?? 1) - 1;
    if (left > 0) this.introduced.set(introducedBy, left);
    else this.introduced.delete(introducedBy);
  }
}

/** Computes the mean of a group step by step, because the sum of large values can overflow. */
function meanOf(values: Float64Array, groups: Int32Array, wanted: number): number {
  let count = 0;
  let mean = 0;
  for (const [slot, group] of groups.entries()) {
    const value = values[slot] as number;
    if (group !== wanted || Number.isNaN(value)) continue;
    count++;
    mean += value / count - mean / count;
  }
  return mean;
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: names are chosen by clients.
const UNPRINTABLE = /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g;

/** Converts a text to a label's value: UTF-8 on one line. Texts that differ only in unprintable characters become equal. */
export const labelOf = (text: string): string => text.toWellFormed().replace(UNPRINTABLE, '\ufffd');
