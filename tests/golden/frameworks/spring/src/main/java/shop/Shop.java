package shop;

import io.opentelemetry.api.trace.Span;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.Base64;
import java.util.Map;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.builder.SpringApplicationBuilder;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PathVariable;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.servlet.HandlerInterceptor;
import org.springframework.web.servlet.config.annotation.InterceptorRegistry;
import org.springframework.web.servlet.config.annotation.WebMvcConfigurer;

/**
 * Spring Boot by the Java agent: an interceptor names the user on the span that is active, the server's. With a user of
 * Spring Security (the profile `security`) the agent names that user by itself.
 */
@SpringBootApplication
@RestController
public class Shop implements WebMvcConfigurer {
    @Value("${spring.security.user.name:}")
    private String login;

    @GetMapping("/users/{id}")
    Map<String, Long> user(@PathVariable long id) {
        return Map.of("id", id);
    }

    @GetMapping("/boom")
    void boom() {
        throw new IllegalStateException("boom");
    }

    @Override
    public void addInterceptors(InterceptorRegistry registry) {
        if (!login.isEmpty()) {
            return;
        }
        registry.addInterceptor(new HandlerInterceptor() {
            @Override
            public boolean preHandle(HttpServletRequest request, HttpServletResponse response, Object handler) {
                Span.current().setAttribute("user.id", "anna-4711");
                return true;
            }
        });
    }

    public static void main(String[] arguments) throws Exception {
        var context = new SpringApplicationBuilder(Shop.class)
                .properties("server.port=0", "logging.level.root=off", "spring.main.banner-mode=off")
                .run(arguments);
        var environment = context.getEnvironment();
        String login = environment.getProperty("spring.security.user.name", "") + ":password";
        String authorization = "Basic " + Base64.getEncoder().encodeToString(login.getBytes());
        for (String path : new String[] {"/users/17", "/missing/17", "/boom"}) {
            URI address = URI.create("http://127.0.0.1:" + environment.getProperty("local.server.port") + path);
            HttpRequest request = HttpRequest.newBuilder(address).header("Authorization", authorization).build();
            HttpClient.newHttpClient().send(request, BodyHandlers.discarding());
        }
        System.exit(SpringApplication.exit(context));
    }
}
