package org.edgevlm;

import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.util.Arrays;
import java.util.Comparator;
import java.util.concurrent.Callable;
import java.util.function.BooleanSupplier;

/** The smallest test runner: runs each method `check...` of a class and prints PASS or FAIL; ends with 1 on failure. */
public final class Checks {
    private static final long LIMIT_MS = 20_000;

    private Checks() {
    }

    /** Runs the checks of `test`. */
    public static void run(Object test) throws IllegalAccessException {
        Method[] methods = test.getClass().getDeclaredMethods();
        Arrays.sort(methods, Comparator.comparing(Method::getName));
        int failures = 0;
        int count = 0;
        for (Method method : methods) {
            if (!method.getName().startsWith("check") || method.getParameterCount() != 0) {
                continue;
            }
            count++;
            method.setAccessible(true);
            long start = System.nanoTime();
            try {
                method.invoke(test);
                System.out.println("PASS " + method.getName() + " " + (System.nanoTime() - start) / 1_000_000 + " ms");
            } catch (InvocationTargetException error) {
                failures++;
                System.out.println("FAIL " + method.getName() + ": " + error.getCause());
                error.getCause().printStackTrace(System.out);
            }
        }
        System.out.println(count + " checks, " + failures + " failed");
        System.exit(failures == 0 && count > 0 ? 0 : 1);
    }

    public static void that(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }

    /** Waits until something holds that another thread brings about. */
    public static void until(BooleanSupplier holds, String what) throws InterruptedException {
        long end = System.nanoTime() + LIMIT_MS * 1_000_000;
        while (!holds.getAsBoolean()) {
            that(System.nanoTime() < end, "waited too long until " + what);
            Thread.sleep(2);
        }
    }

    public static void equal(Object found, Object expected) {
        if (expected == null ? found != null : !expected.equals(found)) {
            throw new AssertionError("found " + found + ", expected " + expected);
        }
    }

    /** Returns the refusal of a call, whose message has all of `words`. */
    public static EdgeVlmException refused(EdgeVlmException.Kind kind, Callable<?> call, String... words)
            throws Exception {
        try {
            call.call();
        } catch (EdgeVlmException error) {
            equal(error.kind(), kind);
            for (String word : words) {
                that(error.getMessage().contains(word), "'" + word + "' is not in: " + error.getMessage());
            }
            return error;
        }
        throw new AssertionError("nothing was refused, expected " + kind);
    }
}
