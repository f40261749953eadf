import type { Statements } from './statements';

/** A message for the listeners of its topic. */
export type Announcement = readonly [topic: string, message: string];

/** Tells this process's listeners what a unit announced. */
export type Deliver = (...announcement: Announcement) => void;

/** What is to happen once a unit of work is committed, in its order; with what it announces. */
export class Effects {
  private readonly effects: ((() => void) | Announcement)[] = [];

  constructor(private readonly deliver: Deliver) {}

  /** What is to be told to other replicas. */
  get announcements(): Announcement[] {
    return this.effects.filter((effect) => typeof effect !== 'function');
  }

  add(effect: (() => void) | Announcement): void {
    this.effects.push(effect);
  }

  /** Does all of them, whatever some of them throw. @throws the first of what they throw */
  apply(): void {
    const failures: unknown[] = [];
    for (const effect of this.effects) {
      try {
        if (typeof effect === 'function') effect();
        else this.deliver(...effect);
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw failures[0];
  }

  /**
   * Does a part of the unit that can fail alone: what it throws undoes its changes and its effects, and is in the answer.
   * @param endsUnit tells of what it throws whether the unit as a whole is at an end; that is thrown on
   */
  async attempt<T>(
    statements: Pick<Statements, 'run'>,
    part: () => Promise<T>,
    endsUnit: (reason: unknown) => boolean = () => false,
  ): Promise<PromiseSettledResult<T>> {
    const before = this.effects.length;
    await statements.run('SAVEPOINT part');
    const [outcome] = await Promise.allSettled([part()]);
    if (outcome.status === 'rejected') {
      if (endsUnit(outcome.reason)) throw outcome.reason;
      this.effects.length = before;
      await statements.run('ROLLBACK TO part');
    }
    await statements.run('RELEASE part');
    return outcome;
  }
}
