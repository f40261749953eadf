import type { Statements } from './statements';

/** A message to the listeners of its topic. */
export type Announcement = readonly [topic: string, message: string];

/** Delivers an announcement to this process's listeners. */
export type Deliver = (...announcement: Announcement) => void;

/** Collects the effects and announcements of a unit of work, which are applied in order once it is committed. */
export class Effects {
  private readonly effects: ((() => void) | Announcement)[] = [];

  constructor(private readonly deliver: Deliver) {}

  /** The announcements, to be sent to other replicas. */
  get announcements(): Announcement[] {
    return this.effects.filter((effect) => typeof effect !== 'function');
  }

  add(effect: (() => void) | Announcement): void {
    this.effects.push(effect);
  }

  /** Applies all of them, even if some throw. @throws the first error */
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
   * Runs a part of the unit that can fail alone: if it throws, its changes and effects are rolled back, and the error
   * is returned.
   * @param endsUnit whether an error concerns the whole unit; it is thrown on then
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
